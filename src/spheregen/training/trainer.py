"""The training loop: exact to the last bit when it is interrupted and continued, on one process or many.

All randomness of a step comes from generators seeded by (seed, step), and the order and augmentation of the data are
functions of (seed, step) too; so a step depends on nothing but the weights, the optimiser's moments and its number.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.data import Batch
from spheregen.devices import own_defaults
from spheregen.distributed import joined_world
from spheregen.errors import TrainingError
from spheregen.family.recipe import Recipe
from spheregen.lock import locked_folder
from spheregen.measure.timing import matmul_peak
from spheregen.noise import BatchNoise
from spheregen.progress import QuietReporter, Reporter
from spheregen.training.arithmetic import CompileClock
from spheregen.training.estimate import LONG_RUN, step_cost
from spheregen.training.hooks import TrainingHook
from spheregen.training.latents import observe
from spheregen.training.plots import seconds_of_log
from spheregen.training.run import Run
from spheregen.training.setup import set_up


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    folder: Path
    """The run folder, which is also a model folder."""
    steps: int
    """Optimiser steps of the whole run."""
    steps_done_now: int
    """Those of this call; 0 when the run was complete already."""
    seconds: float
    """Wall time of this call's steps."""
    metrics: Mapping[str, float]
    """The means of the last log interval; empty when nothing was left to do."""


@own_defaults()
def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    hooks: Sequence[TrainingHook] = (),
) -> TrainingResult:
    """Train a recipe into a run folder, or continue the run that is there.

    The folder gets `config.json`, `model.safetensors` (the EMA of the weights) and a model card, so that it can be
    sampled while training goes on; `recipe.json`, `log.jsonl`, `previews/` and `state/`. Under `torchrun` every process
    calls this alike; the batch is shared among them and the first one writes, to a folder that all of them can read.
    Meanwhile nobody else can train into it.

    SIGTERM and SIGINT (Ctrl-C) end the run after its current step, with a checkpoint; a second one ends it at once.

    Args:
        recipe: what to train, with a data source; with `init` a new run starts from the weights of that model.
        out: the run folder; made if it does not exist.
        device: a torch device or `auto`.
        reporter: hears of progress, in the first process; silent by default.
        hooks: code of yours that looks at the run, see `TrainingHook`.

    Raises:
        ModelFileError: the model to start from is missing or broken.
        TrainingError: the folder holds a run with other settings, the loss is no longer finite, or another process of
            the run failed.
        SphereGenError: another process holds the folder, or it cannot be made.
        DataError, ConfigError: data and recipe do not fit together, or nothing of the model to start from fits.
        KeyboardInterrupt, SystemExit: the run was asked to stop, and has saved its state.
    """
    with joined_world(device, recipe.train.backend) as world, locked_folder(Path(out), world):
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        run = set_up(recipe, Path(out), device, reporter, world, hooks)
        reporter.message(run.headline)
        if run.start >= run.total:
            run.save_model(run.total)
            run.fit_prior()
            reporter.message(f"the run in {run.folder} is complete; nothing to do")
            return TrainingResult(run.folder, run.total, 0, 0.0, {})
        run.prepare_folder()
        begun = time.monotonic()
        try:
            run.hooks.start(run.view(run.start))
            reporter.earlier = seconds_of_log(run.folder, recipe.train.batch_size)
            reporter.start(run.total, run.start, recipe.train.batch_size)
            with _heard_signals() as heard:
                metrics = _loop(run, heard)
            run.fit_prior()
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).partition("\nSet TORCHDYNAMO")[0].split())[:200]
            raise TrainingError(
                f"torch.compile failed ({reason}); set train.compile=false, or install a C++ compiler such as g++"
            ) from error
        finally:
            reporter.stop()
            run.hooks.end()
        return TrainingResult(run.folder, run.total, run.total - run.start, time.monotonic() - begun, metrics)


def _loop(run: Run, heard: Sequence[int]) -> Mapping[str, float]:
    """Take the steps that are left; returns the means of the last log interval."""
    settings, total, device, speed = run.recipe.train, run.total, run.step.device, _Speed(run)
    values: dict[str, float] = {}
    timed = run.step.compiled and device.type == "cpu" and run.world.is_first
    clock = CompileClock(run.recipe, run.step.model, timed=timed)
    for batch, noise in _batches(run):
        if batch.step == run.start:
            if device.type == "cuda" and not run.step.sharded:
                run.step.fit(batch, noise)
            run.step.settle(batch, noise)
        rates = run.rates(batch.step)
        result = run.step(batch, noise, rates)
        clock.step()
        done = batch.step + 1
        run.meters.add(result.values)
        logs = done % settings.log_every == 0 or done == total
        # reading costs nothing on a CPU; elsewhere it waits for the device, so only at the log interval
        tells = logs or done == run.start + 1
        reads = tells or device.type == "cpu"
        if reads:
            values = run.check_finite(done)
        if logs:
            values |= observe(result.observed, run.world)
            named = {f"lr_{name}" if name else "lr": rate for name, rate in rates.items()}
            epoch = done * settings.batch_size / run.batches.count
            run.values = {"epoch": epoch, **values, **named, **speed.since_last(done)}
            run.hooks.log(done, run.values)
            run.meters.reset()
        if run.hooks.due(done):
            run.calibrate(done)
            run.hooks.after_step(run.view(done))
        # one process stops at once, and waits for its device; several agree when they wait anyway
        stopping = heard[0] if heard and (reads or run.world.size == 1) else 0
        if reads and run.world.size > 1:  # any process may have been asked
            stopping = int(run.world.largest(torch.tensor(stopping, device=device)).item())
        if done % settings.checkpoint_every == 0 or done == total or stopping:
            run.save(done)
        run.reporter.step(done, values if tells else None)
        if stopping and done < total:
            run.reporter.message(f"stopped after step {done}, which is saved; the same command continues")
            raise KeyboardInterrupt if stopping == signal.SIGINT else SystemExit(128 + stopping)
    return values


def _batches(run: Run) -> Iterator[tuple[Batch, BatchNoise]]:
    """Give each step's batch and random numbers; a GPU gets the latter from a thread that is one step ahead."""
    device = run.step.device
    if device.type != "cuda":
        for batch in run.batches:
            yield batch, run.step.draw(batch.step)
        return

    def drawn(step: int) -> BatchNoise:
        return run.step.draw(step).each(Tensor.pin_memory)

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(drawn, run.start)
        for batch in run.batches:
            noise = ahead.result()
            ahead = thread.submit(drawn, batch.step + 1)
            yield batch, noise.each(lambda tensor: tensor.to(device, non_blocking=True))


@contextlib.contextmanager
def _heard_signals() -> Iterator[Sequence[int]]:
    """Hear SIGTERM and SIGINT, so that a run can finish its step and save; a second signal acts at once."""
    heard: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def hear(number: int, _: object) -> None:
        heard.append(number)
        restore()

    if threading.current_thread() is threading.main_thread():  # Python delivers signals nowhere else
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, hear)
    try:
        yield heard
    finally:
        restore()


class _Speed:
    """Measures a run between the entries of its log."""

    def __init__(self, run: Run) -> None:
        self._run, self._time, self._step = run, time.monotonic(), run.start
        self._peak = 0.0  # images a second that the machine's matrix peak would allow, in long runs
        if run.total >= LONG_RUN:
            peak = matmul_peak(run.step.device, run.step.precision) * run.world.size
            self._peak = peak / step_cost(run.recipe).flops_per_image

    def since_last(self, done: int) -> dict[str, float]:
        """Return `images_per_second` since the last call, and `mfu` of long runs."""
        now = time.monotonic()
        speed = (done - self._step) * self._run.recipe.train.batch_size / max(now - self._time, 1e-9)
        self._time, self._step = now, done
        return {"images_per_second": speed, **({"mfu": speed / self._peak} if self._peak else {})}
