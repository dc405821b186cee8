"""What this machine's matrix units can do, measured: the yardstick for how busy a network keeps them.

A machine's speed drifts with its temperature and its neighbours, so a peak that is compared with something else should
be measured in turn with it: one `PeakMeter.sample()` before each run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SIZES = (1024, 2048, 4096)
PROBES = (256, 512)
"""Smaller squares: they tell how long the others will take, and stand in where even those are too slow."""
MAX_SECONDS = 2.0  # of one size in `matmul_peak`; a machine that needs longer is measured on fewer and smaller products
_ENOUGH = 0.02  # seconds of work between two looks at an accelerator's clock, so that launching costs nothing


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
        """The peak as plain values."""
        return {
            "flops": self.flops,
            "size": self.size,
            "by_size": {str(size): rate for size, rate in self.by_size.items()},
            "left_out": list(self.left_out),
        }


class PeakMeter:
    """Times square products `a @ b`, one of each size in every `sample()`; each size counts with its median.

    Sizes whose single product would take longer than `max_seconds` are left out. If none is left, the largest quick one
    of 256 and 512 takes their place. The matrices are random, for zeros and ones take less power than real numbers and
    so run faster; torch's own random state is not touched.

    Args:
        device: where.
        precision: `float32` or `bf16`.
        sizes: sides of the squares.
        max_seconds: longest time of one product.
    """

    def __init__(
        self, device: torch.device, precision: str, *, sizes: Sequence[int] = SIZES, max_seconds: float = 4.0
    ) -> None:
        self.device = device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._generator = torch.Generator(device).manual_seed(0)
        self._times: dict[int, list[float]] = {}
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self._counts: dict[int, int] = {}
        self._left_out: list[int] = []
        rate = 0.0
        small = [probe for probe in PROBES if probe < min(sizes)]
        for size in (*small, *sorted(sizes)):
            if rate and 2 * size**3 / rate > max_seconds:
                self._left_out.append(size)
                continue
            pair = self._matrices(size)
            _seconds(*pair, 1)  # the first one warms up
            count = 1
            seconds = _seconds(*pair, 1)
            if device.type != "cpu" and seconds < _ENOUGH:
                count = max(1, min(1000, int(_ENOUGH / seconds)))
                seconds = _seconds(*pair, count)
            rate = 2 * size**3 / seconds
            self._pairs[size], self._counts[size], self._times[size] = pair, count, []
        wanted = [size for size in sizes if size in self._pairs] or [max(self._pairs)]
        for size in [size for size in self._pairs if size not in wanted]:
            del self._pairs[size], self._times[size]
        self._left_out = [size for size in self._left_out if size in sizes]

    def sample(self) -> None:
        """Time one product of each size; on an accelerator the mean of enough of them to see its clock."""
        for size, pair in self._pairs.items():
            self._times[size].append(_seconds(*pair, self._counts[size]))

    def result(self) -> Peak:
        """The best size at the median of the samples so far.

        Raises:
            ValueError: nothing was sampled yet.
        """
        if not all(self._times.values()):
            raise ValueError("nothing was sampled yet; call sample() first")
        rates = {size: 2 * size**3 / statistics.median(times) for size, times in self._times.items()}
        best = max(rates, key=lambda size: rates[size])
        return Peak(flops=rates[best], size=best, by_size=rates, left_out=tuple(self._left_out))

    def _matrices(self, size: int) -> tuple[Tensor, Tensor]:
        a, b = (
            torch.rand(size, size, generator=self._generator, device=self.device).sub_(0.5).to(self.dtype)
            for _ in range(2)
        )
        return a, b


def matmul_peak(device: torch.device, precision: str, *, sizes: Sequence[int] = SIZES, repeats: int = 3) -> float:
    """Floating-point operations per second of square matrix products: the best size, each at its median.

    Args:
        device: where.
        precision: `float32` or `bf16`.
        sizes: sides of the squares; those that would take more than about two seconds together are left out.
        repeats: samples of each size.
    """
    meter = PeakMeter(device, precision, sizes=sizes, max_seconds=MAX_SECONDS / (repeats + 2))
    for _ in range(repeats):
        meter.sample()
    return meter.result().flops


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told to do; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


def _seconds(a: Tensor, b: Tensor, count: int) -> float:
    """Mean seconds of `count` products."""
    synchronize(a.device)
    begun = time.perf_counter()
    for _ in range(count):
        a @ b
    synchronize(a.device)
    return (time.perf_counter() - begun) / count
