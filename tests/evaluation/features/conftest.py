"""What the tests of feature networks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small work is slower on two threads, far slower when other programs keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_images(count: int, channels: int = 3, height: int = 32, width: int | None = None) -> Tensor:
    """uint8 (count, channels, height, width), the same in every call; smooth enough that a shift matters little."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 255
    size = (height, width or height)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").round().to(torch.uint8)
