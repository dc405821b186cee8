"""How fast a model samples on this device, and what memory that takes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spheregen.evaluation.peak import synchronize
from spheregen.pipeline import GenerationOptions, Pipeline

PERCENTILES = (50, 90, 99)


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
def _peak(device: torch.device) -> Any:
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
