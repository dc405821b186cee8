"""What all metrics share: features in float64, block by block, and the checks of their number and width.

Legend: N images, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spheregen.errors import DataError
from spheregen.evaluation.rows import BLOCK, Rows, blocks

EPS = torch.finfo(torch.float64).eps
PAIR_BLOCK = 1024
"""Rows on each side of a block of pairs: 8 MiB of distances, which suits the caches of a processor."""


def exact(values: Tensor) -> Tensor:
    """`values` in float64 where they lie, or on the CPU where a device has no float64 (Apple's)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def exact_blocks(rows: Rows, size: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """All rows in order and in float64, `size` at a time, with their places.

    Raises:
        DataError: a number is not finite.
    """
    for part, block in blocks(rows, size):
        yield part, exact(block)


def block_pairs(a: Rows, b: Rows | None = None) -> Iterator[tuple[slice, Tensor, slice, Tensor]]:
    """All pairs of blocks of two sets, in float64, with their places; the numbers are not checked again.

    Without `b`, pairs within one set, of which each comes once: the second block is the first one or a later one.
    """
    count_a, count_b = a.shape[0], (a if b is None else b).shape[0]
    for start_a in range(0, count_a, PAIR_BLOCK):
        part_a = slice(start_a, min(start_a + PAIR_BLOCK, count_a))
        block_a = exact(a[part_a])
        for start_b in range(start_a if b is None else 0, count_b, PAIR_BLOCK):
            part_b = slice(start_b, min(start_b + PAIR_BLOCK, count_b))
            if b is None and start_b == start_a:
                yield part_a, block_a, part_b, block_a
            else:
                yield part_a, block_a, part_b, exact((a if b is None else b)[part_b]).to(block_a.device)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 of all pairs (N, N') of rows (N, D) and (N', D) in float64, at least 0.

    From |x|^2 + |y|^2 - 2 x.y, so wrong by about (|x|^2 + |y|^2) times float64's rounding error.
    """
    squared = torch.addmm(x.square().sum(dim=1, keepdim=True), x, y.T, alpha=-2)
    return squared.add_(y.square().sum(dim=1)).clamp_min_(0)


def check_pair(samples: Rows, reference: Rows) -> None:
    """Both sets must come from one feature network, and so have the same width.

    Raises:
        DataError: they have not.
    """
    if samples.shape[1] != reference.shape[1]:
        raise DataError(
            f"the samples have {samples.shape[1]} features each and the reference {reference.shape[1]}; "
            "compute both with the same feature network"
        )


def check_count(rows: Rows, needed: int, metric: str, name: str = "images", cure: str = "give more images") -> None:
    """A metric needs so many images.

    Raises:
        DataError: there are fewer.
    """
    if rows.shape[0] < needed:
        raise DataError(f"{metric} needs at least {needed} {name}, not {rows.shape[0]}; {cure}")
