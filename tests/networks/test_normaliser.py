"""Latents at mean 0 and variance 1: the arithmetic, and statistics that do not depend on how the data is divided."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError
from spheregen.networks.normaliser import Normaliser, measure


def latents(count: int, seed: int = 0) -> Tensor:
    """(B, 4, 3), each number with a mean and a deviation of its own."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.2, 5, 12).view(1, 4, 3)
    return torch.randn((count, 4, 3), generator=generator) * scale + 10 * scale


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [12], [0, 11, 0, 1]])
def test_batches_and_processes_do_not_matter(sizes: list[int]) -> None:
    z = latents(12)
    whole, parts = measure([z]), measure(iter(z.split(sizes)))
    said: list[Any] = []

    def listen(value: object) -> list[Any]:
        said.append(value)
        return [value]

    if len(sizes) == 2:
        first, second = z.split(sizes)
        measure([first], gather=listen)
        parts = measure([second], gather=lambda value: [said[0], value, []])
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(parts.std, whole.std, rtol=1e-6, atol=0)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    z = 1e4 + latents(64).double()
    torch.testing.assert_close(measure([z]).std, measure([z - 1e4]).std, rtol=1e-5, atol=0)


def test_statistics_stay_wide_and_are_saved() -> None:
    made = measure([latents(9)])
    mean = made.mean.clone()
    assert made.bfloat16().mean.equal(mean)
    assert made.half().std.dtype == torch.float32
    assert made.to("meta").mean.is_meta
    again = Normaliser.identity(3)
    again.load_state_dict(measure([latents(9)]).state_dict())
    assert again.mean.equal(mean)
    assert not Normaliser(mean, torch.ones_like(mean), persistent=False).state_dict()


def test_what_cannot_be_measured_or_used() -> None:
    with pytest.raises(DataError, match="no latents to measure"):
        measure([])
    with pytest.raises(DataError, match="not finite"):
        measure([latents(2) / 0])
    with pytest.raises(ConfigError, match="have the shape"):
        Normaliser(torch.zeros(3), torch.ones(3))
    with pytest.raises(ConfigError, match="not positive"):
        Normaliser(torch.zeros(1, 3), torch.zeros(1, 3))
