"""How fast a recipe samples and trains here, against the machine's own matrix products.

Every figure is a median of repeats that take turns: products, each kind of sampling, a training step, and again. So the
drift of a machine's speed meets all of them alike. Pictures and labels are random, for speed depends on neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError
from spheregen.evaluation.cost import RefinedCost, generator_cost
from spheregen.evaluation.peak import SIZES, Peak, PeakMeter, matmul_peak, synchronize
from spheregen.losses.perceptual import random_perceptual
from spheregen.models.blank import blank_generator
from spheregen.models.flow_refiner import RefinedGenerator
from spheregen.nn.block import compile_blocks
from spheregen.sampling.loop import sample
from spheregen.sampling.refinement import Refinement, Rough, refine_samples
from spheregen.training.recipe import AutoencoderRecipe, Recipe, RepresentationRecipe, SphereFlowRecipe
from spheregen.training.step import TrainingStep, compiles
from spheregen.training.synthetic import synthetic_batch
from spheregen.training.systems import System, build_system
from spheregen.training.systems.autoencoder import AutoencoderSystem
from spheregen.training.systems.sphere_flow import front_architecture
from spheregen.training.tracing import keep_random_state

PRECISIONS = ("float32", "bf16")
WHAT = ("sample", "train")
SLOW_BF16 = 0.1
"""Below this part of the float32 rate, bf16 is measured only where it was asked for."""
_LONG = 10**6  # steps of a run that counts epochs
_ENOUGH = 0.05  # seconds of work between two looks at an accelerator's clock


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    device: str
    """The name of the GPU or of the processor."""
    kind: str
    """The device's type: `cpu`, `cuda`, `mps`."""
    threads: int
    torch: str
    python: str
    system: str


@dataclass(frozen=True)
class BenchRow:
    """One measured kind of work."""

    what: Literal["sample", "train"]
    steps: int
    """Steps of sampling; 1 for training."""
    precision: str
    batch_size: int
    seconds: float
    """Median time of a batch or of a training step."""
    percentiles: Mapping[str, float]
    """`p5`, `p50` and `p95` of that time, in seconds."""
    images_per_second: float
    flops_per_image: float
    """By the convention of `evaluation.cost`; for training with the perceptual networks."""
    flops: float
    """Operations per second."""
    of_peak: float
    """`flops` as a share of the measured peak of this precision."""
    peak_bytes: int | None
    """Largest memory on the GPU since its own set-up; on a CPU the process's so far; None where it is not known."""


@dataclass(frozen=True)
class ProfileRow:
    """Where the time of one kind of work goes: an operator or a group of them."""

    name: str
    group: str
    seconds: float
    share: float
    calls: int


@dataclass(frozen=True)
class BenchResult:
    """All that was measured."""

    recipe: str
    machine: Machine
    peaks: Mapping[str, Peak]
    """By precision."""
    rows: Sequence[BenchRow]
    notes: Sequence[str]
    """What was left out and why, one line each."""
    profiles: Mapping[str, Sequence[ProfileRow]] = dataclasses.field(default_factory=dict)
    """By kind of work, such as `train bf16`; the operators with the longest own time first."""

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, as `spheregen bench --json` prints it."""
        return {
            "recipe": self.recipe,
            "machine": dataclasses.asdict(self.machine),
            "peaks": {precision: peak.as_dict() for precision, peak in self.peaks.items()},
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "profiles": {name: [dataclasses.asdict(row) for row in rows] for name, rows in self.profiles.items()},
        }


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
        precisions: of `float32` and `bf16`; None takes both, but bf16 only where it is not absurdly slow.
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
        ConfigError: an impossible option.
    """
    _check(precisions, batch_size, steps, repeats, what, perceptual)
    _check_kind(recipe, what)
    notes: list[str] = []
    if precisions is None:
        precisions, notes = _sensible_precisions(device)
    if batch_size is not None:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": batch_size})})
    peaks: dict[str, Peak] = {}
    rows: list[BenchRow] = []
    profiles: dict[str, Sequence[ProfileRow]] = {}
    with keep_random_state():
        for precision in precisions:
            progress(f"{precision}: measuring matrix products")
            meter = PeakMeter(device, precision, sizes=peak_sizes)
            works: list[_Work] = []
            if "sample" in what:
                works += _sampling(recipe, device, precision, steps)
            if "train" in what:
                works.append(_training(recipe, device, precision, perceptual, notes))
            for work in works:
                progress(f"{precision}: warming up {work.name}")
                work.warm_up()
            for turn in range(repeats):
                progress(f"{precision}: turn {turn + 1} of {repeats}")
                meter.sample()
                for work in works:
                    work.measure()
            peaks[precision] = meter.result()
            rows += [work.row(precision, peaks[precision]) for work in works]
            if peaks[precision].left_out:
                left_out = ", ".join(map(str, peaks[precision].left_out))
                notes.append(f"{precision}: products of side {left_out} take too long here and do not count")
            for work in works if profile else ():
                progress(f"{precision}: profiling {work.name}")
                profiles[f"{work.name} {precision}"] = work.profile()
                if device.type == "cuda":
                    notes.append(f"{work.name} {precision}: {work.waits()}")
            del works
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return BenchResult(
        recipe=recipe.name, machine=describe_machine(device), peaks=peaks, rows=rows, notes=notes, profiles=profiles
    )


def describe_machine(device: torch.device) -> Machine:
    """The device, its processor and the software, for a report."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(
        device=name,
        kind=device.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        system=platform.system(),
    )


def _check(
    precisions: Sequence[str] | None,
    batch_size: int | None,
    steps: Sequence[int],
    repeats: int,
    what: Sequence[str],
    perceptual: str | None,
) -> None:
    for names, known, option in ((precisions or (), PRECISIONS, "precision"), (what, WHAT, "kind of work")):
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown {option} {name!r}; use {' or '.join(known)}")
    if perceptual not in (None, "random"):
        raise ConfigError(f"perceptual is random or left out, not {perceptual!r}")
    if not what or not steps or min(steps) < 1:
        raise ConfigError("give at least one kind of work, and numbers of sampling steps of at least 1")
    if repeats < 1 or (batch_size is not None and batch_size < 1):
        raise ConfigError("repeats and the batch size are at least 1")


def _sensible_precisions(device: torch.device) -> tuple[Sequence[str], list[str]]:
    if device.type == "cuda":
        return (PRECISIONS, []) if torch.cuda.is_bf16_supported() else (("float32",), ["no bf16 on this GPU"])
    full, half = (matmul_peak(device, precision, sizes=(256,), repeats=9) for precision in PRECISIONS)
    if half < SLOW_BF16 * full:
        ratio = full / half
        return ("float32",), [f"bf16 is left out: {ratio:.0f} times slower than float32 here; ask for it to measure it"]
    return PRECISIONS, []


class _Work:
    """Something that is run and timed."""

    def __init__(
        self, name: str, what: Literal["sample", "train"], steps: int, batch: int, flops: float, device: torch.device,
        run: Callable[[], object],
    ) -> None:  # fmt: skip
        self.name, self._what, self._steps, self._batch, self._flops = name, what, steps, batch, flops
        self._device, self._run = device, run
        self._count = 1
        self._times: list[float] = []
        self._peak_bytes: int | None = None

    def warm_up(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        for _ in range(3 if self._device.type != "cpu" else 1):
            seconds = self._seconds()
        if self._device.type != "cpu":
            self._count = max(1, min(1000, int(_ENOUGH / seconds)))
        self._peak_bytes = _peak_bytes(self._device)

    def measure(self) -> None:
        self._times.append(self._seconds())

    def row(self, precision: str, peak: Peak) -> BenchRow:
        seconds = statistics.median(self._times)
        rate = self._batch / seconds
        return BenchRow(
            what=self._what,
            steps=self._steps,
            precision=precision,
            batch_size=self._batch,
            seconds=seconds,
            percentiles={f"p{place}": _percentile(self._times, place) for place in (5, 50, 95)},
            images_per_second=rate,
            flops_per_image=self._flops,
            flops=rate * self._flops,
            of_peak=rate * self._flops / peak.flops,
            peak_bytes=self._peak_bytes,
        )

    def profile(self, count: int = 15) -> Sequence[ProfileRow]:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiler

        on_gpu = self._device.type == "cuda"
        with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as trace:
            self._run()
            synchronize(self._device)
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        # an operator's own time on the GPU is that of its kernels, which are listed too: count the kernels alone
        events = [
            event
            for event in trace.key_averages()
            if getattr(event, key) > 0 and (not on_gpu or event.device_type.name == "CUDA")
        ]
        total = sum(getattr(event, key) for event in events) or 1.0
        rows = [
            ProfileRow(
                name=event.key.removeprefix("aten::"),
                group=operator_group(event.key),
                seconds=getattr(event, key) / 1e6,
                share=getattr(event, key) / total,
                calls=event.count,
            )
            for event in events
        ]
        groups: defaultdict[str, list[ProfileRow]] = defaultdict(list)
        for row in rows:
            groups[row.group].append(row)
        totals = [
            ProfileRow("(all)", name, sum(r.seconds for r in g), sum(r.share for r in g), sum(r.calls for r in g))
            for name, g in groups.items()
        ]
        return [*sorted(totals, key=_longest), *sorted(rows, key=_longest)[:count]]

    def waits(self) -> str:
        """Whether the host waits for the GPU inside, in words."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self._run()
        except RuntimeError as error:
            return f"the host waits for the GPU inside ({str(error).splitlines()[0]})"
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return "the host never waits for the GPU inside"

    def _seconds(self) -> float:
        synchronize(self._device)
        begun = time.perf_counter()
        for _ in range(self._count):
            self._run()
        synchronize(self._device)
        return (time.perf_counter() - begun) / self._count


def _longest(row: ProfileRow) -> float:
    return -row.seconds


def _check_kind(recipe: Recipe, what: Sequence[str]) -> None:
    if isinstance(recipe, RepresentationRecipe) and "sample" in what:
        raise ConfigError(f"the recipe {recipe.name} trains a tokenizer, which samples nothing; measure train alone")


def _sampling(recipe: Recipe, device: torch.device, precision: str, steps: Sequence[int]) -> list[_Work]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    with device:
        model = blank_generator(recipe.model, front_architecture(recipe))
    model = model.to(dtype).eval().requires_grad_(False)
    if compiles(recipe, device, _LONG):
        compile_blocks(cast(nn.Module, model))
    cost = generator_cost(model)
    batch, classes = recipe.train.batch_size, recipe.model.num_classes
    noise = torch.randn(batch, *model.latent_shape).to(device, dtype)
    labels = (torch.arange(batch) % classes).to(device) if classes else None

    refinement = Refinement()
    if isinstance(recipe, SphereFlowRecipe):
        refinement = Refinement(recipe.sampling.refinement_steps, recipe.sampling.solver)
    start = torch.randn(batch, *model.image_shape).to(device, dtype)

    def work(count: int) -> _Work:
        def run() -> Tensor:
            if not isinstance(model, RefinedGenerator):
                return sample(model, noise, labels, steps=count, step_noise=noise).images
            rough = Rough(model)
            samples = sample(rough, noise, labels, steps=count, step_noise=noise)
            return refine_samples(rough, samples, labels, refinement, start).images

        name = f"sample {count} step{'s' if count > 1 else ''}"
        gflops = cost.generation_gflops(count)
        if isinstance(cost, RefinedCost):
            name += f" and {refinement.steps}"
            gflops += cost.refinement_gflops(refinement.steps, refinement.solver)
        return _Work(name, "sample", count, batch, 1e9 * gflops, device, run)

    return [work(count) for count in steps]


def _training(recipe: Recipe, device: torch.device, precision: str, perceptual: str | None, notes: list[str]) -> _Work:
    system = _system(recipe, perceptual)
    micro_batch = recipe.train.micro_batch if isinstance(recipe.train.micro_batch, int) else None
    total = recipe.train.steps or _LONG
    step = TrainingStep(system, recipe, device=device, precision=precision, micro_batch=micro_batch, total=total)
    batch, draws = synthetic_batch(step, recipe.train.batch_size)
    for frozen in system.frozen:
        name = getattr(frozen, "name", type(frozen).__name__)
        note = f"training with the frozen networks: {name}{' (random)' if perceptual else ''}"
        if note not in notes:
            notes.append(note)
    if step.compiled:
        notes.append(f"{precision}: the transformer blocks are compiled")

    def run() -> object:
        return step(batch, draws, 1e-6)

    return _Work("train", "train", 1, recipe.train.batch_size, system.flops_per_image(), device, run)


def _system(recipe: Recipe, perceptual: str | None) -> System:
    if isinstance(recipe, AutoencoderRecipe) and perceptual == "random" and recipe.loss.needs_perceptual:
        return AutoencoderSystem(recipe, random_perceptual())
    return build_system(recipe)


_GROUPS = (
    ("attention", ("attention", "flash", "fmha", "sdpa")),
    ("optimiser", ("adam", "lerp", "muon", "foreach", "clip", "multi_tensor")),
    ("convolutions", ("conv",)),
    ("matrix products", ("mm", "matmul", "linear", "gemm", "einsum", "cutlass", "nvjet", "dot")),
    ("norms and softmax", ("norm", "softmax")),
    ("copies and casts", ("copy", "_to", "clone", "contiguous", "cat", "memcpy", "memset", "fill", "zero", "empty")),
    ("sums", ("sum", "mean", "reduce")),
    ("elementwise", ("add", "mul", "div", "sub", "pow", "silu", "tanh", "sqrt", "elementwise", "triton", "where")),
)  # fmt: skip


def operator_group(name: str) -> str:
    """What kind of work an operator or kernel does, by its name."""
    lowered = name.lower()
    for group, signs in _GROUPS:
        if any(sign in lowered for sign in signs):
            return group
    return "other"


def _percentile(values: Sequence[float], place: float) -> float:
    """The percentile by linear interpolation."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * place / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu":
        with contextlib.suppress(OSError, StopIteration):  # other systems have no such file
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return None


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine() or "processor"
