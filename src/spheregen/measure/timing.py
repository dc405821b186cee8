"""Time and memory on this device: calls in turns, the memory of a call, and the peak of the matrix units.

A machine's speed drifts with its temperature and its neighbours, so things that are compared are timed in turns, and a
peak in turn with what it is compared with: one `PeakMeter.sample()` before each run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = (1024, 2048, 4096)
"""Sides of the square products that tell the peak."""
PROBES = (256, 512)
"""Smaller squares: they tell how long the others will take, and stand in where even those are too slow."""
MAX_SECONDS = 2.0  # of one size in `matmul_peak`; a machine that needs longer is measured on fewer and smaller products
_ENOUGH = 0.02  # seconds of work between two looks at an accelerator's clock, so that launching costs nothing


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told to do; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, until the device is done."""
    synchronize(device)
    begun = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begun


def seconds_in_turns(
    calls: Sequence[Callable[[], object]], repeats: int, device: torch.device
) -> list[tuple[float, ...]]:
    """Return the seconds of each call, `repeats` times; they take turns, so that a slow moment falls on all alike."""
    rounds = [[seconds_of(call, device) for call in calls] for _ in range(repeats)]
    return list(zip(*rounds, strict=True)) if rounds else [() for _ in calls]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the MiB at the peak of a call: on CUDA of tensors, on Linux's CPUs of the process; None elsewhere."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) / 2**20
    resettable = False
    if device.type == "cpu":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
            resettable = True
    call()
    if resettable:
        with contextlib.suppress(OSError, ValueError, IndexError):
            (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:")]
            return int(line.split()[1]) / 1024
    return None


def device_name(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def processor_name() -> str:
    """Return the model of the processor, as the system calls it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine() or "processor"


@dataclass(frozen=True)
class Peak:
    """The best rate of square matrix products."""

    flops: float
    """Floating-point operations per second of the best size, a multiply-add counted as two."""
    size: int
    """The side of the best squares."""
    by_size: Mapping[int, float]
    """The median rate of each size that was measured, in operations per second."""
    left_out: Sequence[int]
    """Sizes whose single product would have taken too long."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        by_size = {str(size): rate for size, rate in self.by_size.items()}
        return {**vars(self), "by_size": by_size, "left_out": list(self.left_out)}


class PeakMeter:
    """Times square products `a @ b`, one of each size in every `sample()`; each size counts with its median,
    or as `result` is told.

    Sizes (sides of the squares) whose single product would take longer than `max_seconds` are left out. If none is
    left, the largest quick one of 256 and 512 takes their place. The matrices are random, for zeros and ones take less
    power and so run faster; torch's own random state is not touched. `precision` is `float32` or `bf16`.
    """

    def __init__(
        self, device: torch.device, precision: str, *, sizes: Sequence[int] = SIZES, max_seconds: float = 4.0
    ) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        generator = torch.Generator(device).manual_seed(0)
        products: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._left_out: list[int] = []
        rate = 0.0
        for size in (*(probe for probe in PROBES if probe < min(sizes)), *sorted(sizes)):
            if rate and 2 * size**3 / rate > max_seconds:
                self._left_out += [size] if size in sizes else []
                continue
            a, b = (torch.rand(size, size, generator=generator, device=device).sub_(0.5).to(dtype) for _ in range(2))
            _product_seconds(a, b, 1)  # the first one warms up
            count, seconds = 1, _product_seconds(a, b, 1)
            if device.type != "cpu" and seconds < _ENOUGH:
                count = max(1, min(1000, int(_ENOUGH / seconds)))
                seconds = _product_seconds(a, b, count)
            rate = 2 * size**3 / seconds
            products[size] = (a, b, count)
        wanted = [size for size in sizes if size in products] or [max(products)]
        self._products = {size: products[size] for size in wanted}
        self._times: dict[int, list[float]] = {size: [] for size in wanted}

    def sample(self) -> None:
        """Time one product of each size; on an accelerator the mean of enough of them to see its clock."""
        for size, product in self._products.items():
            self._times[size].append(_product_seconds(*product))

    def result(self, of_times: Callable[[Sequence[float]], float] = statistics.median) -> Peak:
        """Return the best size at the median of the samples so far.

        Args:
            of_times: what counts of the samples of a size instead, such as `min`, which other work changes least.

        Raises:
            ValueError: nothing was sampled yet.
        """
        if not all(self._times.values()):
            raise ValueError("nothing was sampled yet; call sample() first")
        rates = {size: 2 * size**3 / of_times(times) for size, times in self._times.items()}
        best = max(rates, key=lambda size: rates[size])
        return Peak(flops=rates[best], size=best, by_size=rates, left_out=tuple(self._left_out))


def matmul_peak(device: torch.device, precision: str, *, sizes: Sequence[int] = SIZES, repeats: int = 3) -> float:
    """Return operations per second of square matrix products: the best size, each at the median of `repeats` samples.

    Sizes that would take more than about two seconds together are left out.
    """
    meter = PeakMeter(device, precision, sizes=sizes, max_seconds=MAX_SECONDS / (repeats + 2))
    for _ in range(repeats):
        meter.sample()
    return meter.result().flops


def _product_seconds(a: Tensor, b: Tensor, count: int) -> float:
    """Return the mean seconds of `count` products."""

    def products() -> None:
        for _ in range(count):
            a @ b

    return seconds_of(products, a.device) / count


def load_of_processors() -> float:
    """Return how many programs want to run for each processor, this one included, over the last minute; 0 where the
    system does not tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
