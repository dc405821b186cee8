"""The training loop: exact to the last bit when it is interrupted and continued, on one process or many.

All randomness of a step comes from generators seeded by (seed, step), and the order and augmentation of the data are
functions of (seed, step) too; so a step depends on nothing but the weights, the optimiser's moments and its number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spheregen.data import Batch
from spheregen.distributed import joined_world
from spheregen.errors import TrainingError
from spheregen.family.recipe import Recipe
from spheregen.noise import BatchNoise
from spheregen.progress import QuietReporter, Reporter
from spheregen.training.hooks import TrainingHook
from spheregen.training.latents import observe
from spheregen.training.run import Run, set_up
from spheregen.training.signals import StopRequest, end_as_by
from spheregen.training.speed import Speed


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
        DataError, ConfigError: data and recipe do not fit together, or nothing of the model to start from fits.
        KeyboardInterrupt, SystemExit: the run was asked to stop, and has saved its state.
    """
    with joined_world(device, recipe.train.backend) as world:
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        run = set_up(recipe, Path(out), device, reporter, world, hooks)
        reporter.message(run.headline)
        if run.start >= run.total:
            run.complete()
            reporter.message(f"the run in {run.folder} is complete; nothing to do")
            return TrainingResult(run.folder, run.total, 0, 0.0, {})
        run.prepare_folder()
        begun = time.monotonic()
        try:
            run.hooks.start(run.view(run.start))
            reporter.start(run.total, run.start, recipe.train.batch_size)
            with StopRequest() as stop:
                metrics = _loop(run, stop)
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


def _loop(run: Run, stop: StopRequest) -> Mapping[str, float]:
    """Take the steps that are left; returns the means of the last log interval."""
    settings, total, speed = run.recipe.train, run.total, Speed(run)
    values: dict[str, float] = {}
    for batch, noise in _batches(run):
        if batch.step == run.start:
            if run.device.type == "cuda" and not run.step.sharded:
                run.step.fit(batch, noise)
            run.step.settle(batch, noise)
        result = run.step(batch, noise, run.rates(batch.step))
        done = batch.step + 1
        run.meters.add(result.values)
        logs = done % settings.log_every == 0 or done == total
        # reading costs nothing on a CPU; elsewhere it waits for the device, so only at the log interval
        reads = logs or run.device.type == "cpu"
        if reads:
            values = run.check_finite(done)
        if logs:
            values |= observe(result.observed, run.world)
            rates = {f"lr_{name}" if name else "lr": rate for name, rate in run.rates(batch.step).items()}
            epoch = done * settings.batch_size / run.batches.count
            run.values = {"epoch": epoch, **values, **rates, **speed.since_last(done)}
            run.hooks.log(done, run.values)
            run.meters.reset()
        if run.hooks.due(done):
            run.calibrate(done)
            run.hooks.after_step(run.view(done))
        stopping = _asked_to_stop(run, stop) if reads else 0
        if done % settings.checkpoint_every == 0 or done == total or stopping:
            run.save(done)
        run.reporter.step(done, values if logs else None)
        if stopping and done < total:
            run.reporter.message(f"stopped after step {done}, which is saved; the same command continues")
            end_as_by(stopping)
    return values


def _batches(run: Run) -> Iterator[tuple[Batch, BatchNoise]]:
    """Give each step's batch and random numbers; a GPU gets the latter from a thread that is one step ahead."""
    if run.device.type != "cuda":
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
            yield batch, noise.each(lambda tensor: tensor.to(run.device, non_blocking=True))


def _asked_to_stop(run: Run, stop: StopRequest) -> int:
    """Return the signal by which any process was asked to stop, 0 for none."""
    if run.world.size == 1:
        return stop.signal
    return int(run.world.largest(torch.tensor(stop.signal, device=run.device)).item())
