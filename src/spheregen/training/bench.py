"""How fast a recipe samples and trains here, against the machine's own matrix products.

Every figure is a median of repeats that take turns: products, each kind of sampling, a training step, and again. So the
drift of a machine's speed meets all of them alike. Inputs and labels are random, for speed depends on neither.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler
from torch.utils.flop_counter import FlopCounterMode

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of_kind
from spheregen.files import parse_json
from spheregen.measure.precision import choose_precision
from spheregen.measure.timing import (
    SIZES,
    Peak,
    PeakMeter,
    device_name,
    peak_memory,
    processor_name,
    seconds_of,
    synchronize,
)
from spheregen.nn.alone import ROWS
from spheregen.nn.block import compile_blocks
from spheregen.sampling.flow import refine_samples
from spheregen.sampling.loop import sample
from spheregen.training.arithmetic import choose_arithmetic
from spheregen.training.estimate import keep_random_state, random_labels, step_cost, synthetic_batch
from spheregen.training.frozen import blank_of_recipe, build_objective, estimate_objective
from spheregen.training.preview import refinement_of
from spheregen.training.step import TrainingStep

PRECISIONS = ("float32", "bf16")
WHAT = ("sample", "train")
What = Literal["sample", "train"]
BUSY = 0.9
"""Of `cpu_share` on a CPU: below it the machine has other work."""
_LONG = 10**6  # steps of a run that counts epochs
_ENOUGH = 0.05  # seconds of work between two looks at an accelerator's clock
_OPERATORS = 15  # rows of a profile


@dataclass(frozen=True)
class BenchRow:
    """One measured kind of work."""

    what: What
    steps: int
    """Steps of sampling; 1 for training."""
    precision: str
    batch_size: int
    seconds: float
    """Median time of a batch or of a training step."""
    cpu_seconds: float
    """The same in seconds of processors, all threads together: other work on the machine hardly changes it."""
    percentiles: Mapping[str, float]
    """`p5`, `p50` and `p95` of that time, in seconds."""
    images_per_second: float
    images_per_cpu_second: float
    flops_per_image: float
    """Of sampling, what torch counts, attention among it; of training, that of linears and convolutions."""
    flops: float
    """Operations per second."""
    of_peak: float
    """`flops` as a share of the measured peak of this precision."""
    peak_bytes: int | None
    """At the peak of a run: on a GPU of tensors, on a CPU of the process; None where it is not known."""


@dataclass(frozen=True)
class BenchResult:
    """All that was measured."""

    recipe: str
    machine: Mapping[str, Any]
    """Where it was measured: `device`, its name, and `kind`, its type, `threads`, versions of the software, and
    `cpu_share`, processor seconds of the work by its wall time: below 1 on a CPU it had to wait for other work."""
    peaks: Mapping[str, Peak]
    """By precision."""
    rows: Sequence[BenchRow]
    notes: Sequence[str]
    """What was left out and why, one line each."""
    profiles: Mapping[str, str] = field(default_factory=dict)
    """By kind of work, such as `train bf16`: torch's table of the operators with the longest own time."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values, as `spheregen bench --json` prints it."""
        peaks = {precision: peak.as_dict() for precision, peak in self.peaks.items()}
        return {**dataclasses.asdict(dataclasses.replace(self, peaks={})), "peaks": peaks}


@own_defaults()
def bench(
    recipe: Recipe,
    *,
    device: torch.device,
    precisions: Sequence[str] | None = None,
    batch_size: int | None = None,
    steps: Sequence[int] = (1, 4),
    repeats: int = 10,
    what: Sequence[str] = WHAT,
    perceptual: str | None = None,
    profile: bool = False,
    peak_sizes: Sequence[int] = SIZES,
    progress: Callable[[str], None] = lambda line: None,
) -> BenchResult:
    """Measure sampling and training of a recipe in this process.

    Training goes through `TrainingStep`, with the recipe's micro-batch, compilation and recomputation. Sampling goes
    through `sampling.sample`, without guidance; in bf16 with the weights in bf16, as `Pipeline` does it.

    Args:
        recipe: what to measure; its data are not needed.
        device: where.
        precisions: of `float32` and `bf16`; None takes float32, and bf16 where the device is fast in it.
        batch_size: images at a time; None takes the recipe's.
        steps: kinds of sampling.
        repeats: of everything; medians are reported.
        what: `sample`, `train` or both.
        perceptual: None for the recipe's networks; `random` for the published ones with random weights, as fast as the
            real ones and needing no files.
        profile: see also where the time goes, and on CUDA whether a step waits for the device.
        peak_sizes: sides of the square products.
        progress: told in a line what comes next.

    Raises:
        ConfigError: an impossible option, or a recipe of a tokenizer, which samples nothing.
    """
    for names, known, option in ((precisions or (), PRECISIONS, "precision"), (what, WHAT, "kind of work")):
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"unknown {option} {unknown[0]!r}; use {' or '.join(known)}")
    if perceptual not in (None, "random"):
        raise ConfigError(f"perceptual is random or left out, not {perceptual!r}")
    batch_size = recipe.train.batch_size if batch_size is None else batch_size
    if not what or min((*steps, repeats, batch_size)) < 1 or not steps:
        raise ConfigError("give at least one kind of work; steps, repeats and the batch size are at least 1")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": batch_size})})
    notes: list[str] = []
    peaks: dict[str, Peak] = {}
    rows: list[BenchRow] = []
    profiles: dict[str, str] = {}
    spent = [0.0, 0.0]  # of wall time, and of processors
    with keep_random_state():
        if precisions is None:
            precisions = PRECISIONS if choose_precision("auto", device).name == "bf16" else PRECISIONS[:1]
        for precision in precisions:
            progress(f"{precision}: warming up")
            meter = PeakMeter(device, precision, sizes=peak_sizes)
            works = _sampling(recipe, device, precision, steps) if "sample" in what else []
            works += [_training(recipe, device, precision, perceptual, notes)] if "train" in what else []
            for turn in range(repeats):
                progress(f"{precision}: turn {turn + 1} of {repeats}")
                meter.sample()
                for work in works:
                    work.measure()
            peaks[precision] = peak = meter.result()
            rows += [work.row(precision, peak) for work in works]
            for place in (0, 1):
                spent[place] += sum(sum(work.times[place]) for work in works)
            if peak.left_out:
                left_out = ", ".join(map(str, peak.left_out))
                notes.append(f"{precision}: products of side {left_out} take too long here and do not count")
            for work in works if profile else ():
                progress(f"{precision}: profiling {work.name}")
                profiles[f"{work.name} {precision}"] = work.profile(notes)
            del works
    wall, cpu = spent
    if device.type == "cpu" and cpu < BUSY * wall:
        notes.append(
            f"the machine is busy: the work got {cpu / wall:.0%} of a processor's time. Compare images per CPU second"
        )
    machine = {
        "device": device_name(device) if device.type == "cuda" else processor_name(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu_share": cpu / max(wall, 1e-9),
    }
    return BenchResult(recipe.name, machine, peaks, rows, notes, profiles)


def read_result(path: Path) -> dict[str, Any]:
    """Return a saved result: what `BenchResult.as_dict` gave, as JSON.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        saved: dict[str, Any] = parse_json(path.read_bytes())
        _rates(saved)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no result of: spheregen bench RECIPE --json") from error
    return saved


def compare(result: BenchResult, saved: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times as fast the work of both is now as it was in a saved result, by what was done.

    On a CPU by images per second of processors, elsewhere by images per second.

    Raises:
        ConfigError: they have nothing in common.
    """
    now, before = _rates(result.as_dict()), _rates(saved)
    if not (common := [name for name in now if name in before]):
        raise ConfigError(
            f"the saved result has no work in common with this one: {', '.join(before)}; here {', '.join(now)}"
        )
    return {name: now[name] / before[name] for name in common}


def _rates(result: Mapping[str, Any]) -> dict[str, float]:
    kind = result["machine"]["kind"]
    rate = "images_per_cpu_second" if kind == "cpu" else "images_per_second"
    names = ("what", "steps", "precision", "batch_size")
    return {
        " ".join([result["recipe"], kind, *(str(row[name]) for name in names)]): float(row[rate])
        for row in result["rows"]
    }


class _Work:
    """Something that is run and timed: `run` makes or learns from `batch` images, in `flops` operations for each."""

    def __init__(
        self, what: What, steps: int, batch: int, flops: float, device: torch.device, run: Callable[[], object]
    ) -> None:
        self.name = "train" if what == "train" else f"sample {steps} step{'s' if steps > 1 else ''}"
        self._what, self._steps, self._batch, self._flops = what, steps, batch, flops
        self._device, self._run = device, run
        self.times: tuple[list[float], list[float]] = ([], [])
        """Of each measurement, seconds of wall time and of processors."""
        # run until it is fast, and see how many runs the clock of an accelerator needs
        self._count = 1
        self._peak = peak_memory(run, device)
        run()
        if device.type != "cpu":
            self._count = max(1, min(1000, int(_ENOUGH / seconds_of(run, device))))

    def measure(self) -> None:
        def runs() -> None:
            for _ in range(self._count):
                self._run()

        begun = time.process_time()
        self.times[0].append(seconds_of(runs, self._device) / self._count)
        self.times[1].append((time.process_time() - begun) / self._count)

    def row(self, precision: str, peak: Peak) -> BenchRow:
        low, seconds, high = np.quantile(self.times[0], (0.05, 0.5, 0.95)).tolist()
        rate, cpu_seconds = self._batch / seconds, statistics.median(self.times[1])
        return BenchRow(
            what=self._what,
            steps=self._steps,
            precision=precision,
            batch_size=self._batch,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            percentiles={"p5": low, "p50": seconds, "p95": high},
            images_per_second=rate,
            images_per_cpu_second=self._batch / max(cpu_seconds, 1e-9),
            flops_per_image=self._flops,
            flops=rate * self._flops,
            of_peak=rate * self._flops / peak.flops,
            peak_bytes=None if self._peak is None else int(self._peak * 2**20),
        )

    def profile(self, notes: list[str]) -> str:
        """Return torch's table of where the time goes; note whether the host waits for the GPU inside."""
        on_gpu = self._device.type == "cuda"
        with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as trace:
            self._run()
            synchronize(self._device)
        if on_gpu:
            torch.cuda.set_sync_debug_mode("error")
            try:
                self._run()
                notes.append(f"{self.name}: the host never waits for the GPU inside")
            except RuntimeError as error:
                notes.append(f"{self.name}: the host waits for the GPU inside ({str(error).splitlines()[0]})")
            finally:
                torch.cuda.set_sync_debug_mode("default")
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        return str(trace.key_averages().table(sort_by=order, row_limit=_OPERATORS, max_name_column_width=50))


def _sampling(recipe: Recipe, device: torch.device, precision: str, steps: Sequence[int]) -> list[_Work]:
    """Return sampling in so many steps each; of a refined generator with its refiner, as the recipe uses it."""
    if not member_of_kind(recipe.kind).generates:
        raise ConfigError(f"the recipe {recipe.name} trains a tokenizer, which samples nothing; measure train alone")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    with device:
        model = blank_of_recipe(recipe)
    model = model.eval().requires_grad_(False)
    batch = recipe.train.batch_size
    most = max(batch, ROWS)  # fewer are computed with company, which is no image's work
    noise = torch.randn(most, *model.latent_shape).to(device)
    labels = random_labels(recipe.model, most, torch.Generator().manual_seed(0))
    labels = None if labels is None else labels.to(device)
    refinement = refinement_of(recipe.sampling, 1.0)
    start = torch.randn(most, *model.image_shape).to(device) if refinement else None

    def run(steps: int, count: int, noise: Tensor, start: Tensor | None) -> Tensor:
        some = None if labels is None else labels[:count]
        samples = sample(model, noise[:count], some, steps=steps, step_noise=noise[:count])
        if refinement is None or start is None:
            return samples.images
        return refine_samples(model, samples, some, refinement, start[:count]).images

    flops = []
    for number in steps:  # before the weights change their type: the counter knows no products of packed weights
        with FlopCounterMode(display=False) as counter:
            run(number, ROWS, noise, start)
        flops.append(counter.get_total_flops() / ROWS)
    model.to(dtype)
    given = noise.to(dtype), None if start is None else start.to(dtype)
    works = [
        _Work("sample", number, batch, each, device, functools.partial(run, number, batch, *given))
        for number, each in zip(steps, flops, strict=True)
    ]
    asked = recipe.train.compile is True or device.type == "cuda"  # an automatic choice on a CPU is for training
    if asked and choose_arithmetic(recipe, device, model, _LONG).compiled:
        compile_blocks(model)
    return works


def _training(recipe: Recipe, device: torch.device, precision: str, perceptual: str | None, notes: list[str]) -> _Work:
    counted = recipe.model_copy(
        update={"perceptual": "published"} if perceptual and hasattr(recipe, "perceptual") else {}
    )
    objective = estimate_objective(counted) if perceptual else build_objective(recipe)
    micro_batch = recipe.train.micro_batch if isinstance(recipe.train.micro_batch, int) else None
    total = recipe.train.steps or _LONG
    asked = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})
    compiled = choose_arithmetic(asked, device, objective.model, total).compiled
    step = TrainingStep(
        objective, recipe, device=device, precision=precision, micro_batch=micro_batch, total=total, compiled=compiled
    )
    batch, noise = synthetic_batch(step, recipe.train.batch_size)
    for frozen in objective.frozen:
        name = getattr(frozen, "name", type(frozen).__name__)
        note = f"training with the frozen networks: {name}{' (random)' if perceptual else ''}"
        if note not in notes:
            notes.append(note)
    chosen = choose_arithmetic(recipe, device, step.model, total).precision
    if (note := f"a run of this recipe trains in {chosen.name}{chosen.because}") not in notes:
        notes.append(note)
    if step.compiled:
        notes.append(f"{precision}: the transformer blocks are compiled")
    flops = step_cost(counted).flops_per_image
    return _Work("train", 1, recipe.train.batch_size, flops, device, lambda: step(batch, noise, 1e-6))
