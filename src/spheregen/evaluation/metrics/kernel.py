"""KID: the kernel distance between two sets of features (Binkowski et al. 2018, arXiv 1801.01401).

The unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, on random subsets.

Legend: N images, D features, M images in a subset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.evaluation.metrics.exact import check_count, check_pair, exact
from spheregen.evaluation.rows import Rows, blocks

_GATHERED_BYTES = 1 << 27
"""Rows of subsets that are held at a time, for each of the two sets."""
_STRIPS = 4  # the symmetric kernel of one set is computed in so many strips, each from the diagonal on


@dataclass(frozen=True)
class KernelDistance:
    """KID over subsets."""

    value: float
    """Mean over subsets. Unbiased, and so at times a little below 0 for sets that are alike."""
    deviation: float
    """Population standard deviation over subsets; what the literature and its tools print after the value."""
    error: float
    """`deviation / sqrt(subsets)`: how far the mean may be off for the draw of subsets, not for that of the images."""


def kernel_distance(
    samples: Rows, reference: Rows, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The kernel distance of two sets of features.

    Args:
        samples: features (N, D).
        reference: features (N', D).
        subsets: how many subsets are drawn.
        size: images in a subset, drawn without replacement from each set.
        seed: of the draw, which is the same on all devices.

    Raises:
        ConfigError: no subsets, or subsets of fewer than two images.
        DataError: fewer images than `size`, another width, or NaN.
    """
    if subsets < 1 or size < 2:
        raise ConfigError(f"KID takes at least 1 subset of at least 2 images, not {subsets} of {size}")
    check_pair(samples, reference)
    for rows, name in ((samples, "samples"), (reference, "reference images")):
        check_count(rows, size, f"KID on subsets of {size}", name, "give more images, or lower `size`")
    generator = torch.Generator().manual_seed(seed)
    draws = [
        [torch.randperm(rows.shape[0], generator=generator)[:size] for rows in (samples, reference)]
        for _ in range(subsets)
    ]
    pairs = zip(
        _gather(samples, torch.stack([picks for picks, _ in draws])),
        _gather(reference, torch.stack([picks for _, picks in draws])),
        strict=True,
    )
    estimates = torch.tensor([_discrepancy(exact(x), exact(y)) for x, y in pairs], dtype=torch.float64)
    deviation = float(estimates.std(correction=0))
    return KernelDistance(
        value=float(estimates.mean()), deviation=deviation, error=deviation / math.sqrt(len(estimates))
    )


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """The unbiased squared discrepancy of x and y (M, D) in float64: an image does not meet itself."""
    y = y.to(x.device)
    return float(_mean_within(x) + _mean_within(y) - 2 * _kernel(x, y).mean())


def _mean_within(x: Tensor) -> Tensor:
    """The mean kernel over all pairs of different rows; each pair is computed about once."""
    size = len(x)
    strip = -(-size // _STRIPS)
    sums = [_kernel(x[start : start + strip], x[start:]).triu(1).sum() for start in range(0, size, strip)]
    return torch.stack(sums).sum() * 2 / (size * (size - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def _gather(rows: Rows, picks: Tensor) -> Iterator[Tensor]:
    """The rows (M, D) of each line of `picks` (subsets, M).

    All rows are read in order, once for as many subsets as `_GATHERED_BYTES` holds.
    """
    per_subset = picks.shape[1] * rows.shape[1] * 4
    for group in picks.split(max(1, _GATHERED_BYTES // per_subset)):
        gathered: Tensor | None = None
        for part, block in blocks(rows):
            if gathered is None:
                gathered = block.new_empty(*group.shape, rows.shape[1])
            here = (group >= part.start) & (group < part.stop)
            gathered[here.to(block.device)] = block[(group[here] - part.start).to(block.device)]
        assert gathered is not None
        yield from gathered
