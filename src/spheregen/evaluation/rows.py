"""Rows of features that need not lie in memory: a tensor, or a file that is read part by part.

Metrics ask for a few thousand rows at a time, so that their memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from spheregen.errors import DataError

BLOCK = 4096
"""Rows that are held at a time."""


class Rows(Protocol):
    """N rows of D numbers; a tensor (N, D) is one."""

    @property
    def shape(self) -> torch.Size | tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, part: slice) -> Tensor:
        """The rows of a slice with start and stop, (n, D), floating point."""


class PlacedRows:
    """Rows whose slices are moved to a device as they are read."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.shape = rows.shape

    def __getitem__(self, part: slice) -> Tensor:
        return self.rows[part].to(self.device)


def blocks(rows: Rows, size: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """All rows in order, `size` at a time, with their places.

    Raises:
        DataError: a number is not finite.
    """
    count = rows.shape[0]
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        block = rows[part]
        if not bool(torch.isfinite(block).all()):
            row = int((~torch.isfinite(block).all(dim=1)).nonzero()[0, 0])
            raise DataError(
                f"the features of image {start + row} hold NaN or infinite numbers; look at that image, and at whether "
                "the feature network overflows in its type"
            )
        yield part, block
