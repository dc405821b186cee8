"""What sampling costs: operations counted, and speed and memory measured on this device."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spheregen.evaluation.cost import GeneratorCost, RefinedCost, generator_cost
from spheregen.evaluation.peak import synchronize
from spheregen.pipeline import GenerationOptions, Pipeline

PERCENTILES = (50, 90, 99)
SPEED_STEPS = (1, 2, 4, 6, 8)


@dataclass(frozen=True, kw_only=True)
class SamplingSpeed:
    """Measured sampling under one setting."""

    steps: int
    batch: int
    """Images of the calls that `images_per_second` comes from."""
    images_per_second: float
    """Of the median call."""
    latency_ms: dict[str, float]
    """Of one image alone: the percentiles p50, p90, p99 in milliseconds; empty if it was not measured."""
    peak_memory_mb: float | None
    """MiB at the peak of such a batch: on CUDA of tensors, on Linux's CPUs of the whole process; else unknown."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def sampling_speed(
    pipe: Pipeline, settings: Sequence[GenerationOptions], *, batch: int = 64, repeats: int = 3, singles: int = 20
) -> list[SamplingSpeed]:
    """Time sampling under several settings, taking turns, so that a slow moment of the machine falls on all alike.

    Args:
        batch: images of one call for the throughput.
        repeats: calls of each setting; the median counts.
        singles: images that are made one by one for the latency; 0: no latency.
    """
    calls: list[list[float]] = [[] for _ in settings]
    alone: list[list[float]] = [[] for _ in settings]
    memory: list[float | None] = [None for _ in settings]
    for place, options in enumerate(settings):  # the first call of a shape is slow
        with _peak(pipe.device) as peak:
            _seconds(pipe, options, batch)
        memory[place] = peak.mb
        if singles:
            _seconds(pipe, options, 1)
    for _ in range(repeats):
        for place, options in enumerate(settings):
            calls[place].append(_seconds(pipe, options, batch))
    for _ in range(singles):
        for place, options in enumerate(settings):
            alone[place].append(_seconds(pipe, options, 1))
    return [
        SamplingSpeed(
            steps=pipe.settings(options)["steps"],
            batch=batch,
            images_per_second=batch / statistics.median(calls[place]),
            latency_ms={f"p{p}": 1000 * _percentile(alone[place], p) for p in PERCENTILES if singles},
            peak_memory_mb=memory[place],
        )
        for place, options in enumerate(settings)
    ]


def cost_figures(pipe: Pipeline, options: GenerationOptions, *, batch: int = 64) -> dict[str, Any]:
    """Parameters, operations by both conventions, and measured speed and memory at 1 to 8 steps."""
    cost = generator_cost(pipe.model)
    settings = [with_steps(options, steps) for steps in SPEED_STEPS]
    by_steps = []
    for generation, speed in zip(settings, sampling_speed(pipe, settings, batch=batch), strict=True):
        chosen = pipe.settings(generation)
        by_steps.append(
            {
                **speed.as_dict(),
                "gflops": gflops_per_image(cost, chosen),
                "counted_gflops": gflops_per_image(cost, chosen, counted=True),
            }
        )
    return {
        "params": {name: part.params for name, part in cost.parts.items()},
        "gflops": {name: part.gflops for name, part in cost.parts.items()},
        "counted_gflops": {name: part.counted_gflops for name, part in cost.parts.items()},
        "by_steps": by_steps,
        "device": device_name(pipe.device),
        "threads": torch.get_num_threads() if pipe.device.type == "cpu" else None,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "guidance": pipe.settings(options)["guidance"] if pipe.classes.count else 1.0,
        "convention": "two operations a multiply-add; `gflops` leaves attention products out, as the published tables "
        "do, `counted_gflops` has them",
    }


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(device)


def gflops_per_image(cost: GeneratorCost, settings: Mapping[str, Any], *, counted: bool = False) -> float:
    """Operations of a sample under settings of the sampler, those of its refinement among them."""
    total = cost.generation_gflops(
        settings["steps"], guided=settings["guidance"] != 1, guidance_at=settings["guidance_at"], counted=counted
    )
    if isinstance(cost, RefinedCost):
        guided = settings["refinement_guidance"] != 1
        total += cost.refinement_gflops(
            settings["refinement_steps"], settings["solver"], guided=guided, counted=counted
        )
    return total


def with_steps(options: GenerationOptions, steps: int) -> GenerationOptions:
    """The same settings with another number of steps; a schedule of numbers, which fits one alone, is left out then."""
    schedule = options.schedule
    if options.steps != steps and not (schedule is None or isinstance(schedule, str) or callable(schedule)):
        schedule = None
    return dataclasses.replace(options, steps=steps, schedule=schedule)


def _seconds(pipe: Pipeline, options: GenerationOptions, count: int) -> float:
    synchronize(pipe.device)
    begun = time.perf_counter()
    for _ in pipe.stream(range(count), options=options):
        pass
    synchronize(pipe.device)
    return time.perf_counter() - begun


def _percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


class _Peak:
    mb: float | None = None


@contextlib.contextmanager
def _peak(device: torch.device) -> Iterator[_Peak]:
    """The most memory that was in use inside the block."""
    peak = _Peak()
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    resettable = False
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):
            references.write_text("5")  # Linux: the high-water mark starts again from here
            resettable = True
    yield peak
    if device.type == "cuda":
        peak.mb = torch.cuda.max_memory_allocated(device) / 2**20
    elif resettable:
        with contextlib.suppress(OSError, ValueError, IndexError):
            (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
            peak.mb = int(line.split()[1]) / 1024
