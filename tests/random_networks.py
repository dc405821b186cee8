"""What the tests of tokenizers share: tiny random networks, with or without the packages of others."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def import_or_skip(name: str) -> Any:
    """An optional package; the test is skipped where it is absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages, about each other
        return pytest.importorskip(name, reason=f"needs the package {name}")


def random_images(count: int, size: int, channels: int = 3, seed: int = 0) -> Tensor:
    """(B, C, S, S) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand((count, channels, size, size), generator=generator) - 1


@torch.no_grad()
def shake(net: nn.Module, seed: int = 0, std: float = 0.2) -> None:
    """Random weights everywhere, norms and biases too, large enough that images are told apart."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(net.named_parameters()):
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(std * torch.randn(parameter.shape, generator=generator) + (1 if gain else 0))
