"""One seed per image: an image depends on its seed alone, never on batch size, position or device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeededNoise:
    """The noise of B images, on the CPU in float32."""

    initial: Tensor
    """(B, N, d) standard Gaussian."""
    steps: Tensor | tuple[Tensor, ...]
    """One (B, N, d) shared by all noisy steps, or one for each."""


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...], noisy_steps: int, *, share: bool = True) -> SeededNoise:
    """Draw each image's noise from a CPU generator of its own seed.

    The initial noise comes first, so the same seed starts at the same point whatever the number of steps.
    """
    draws = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        count = 1 + (min(noisy_steps, 1) if share else noisy_steps)
        # one draw for each noise: a larger draw would fill its numbers in another order
        draws.append(torch.stack([torch.randn(shape, generator=generator) for _ in range(count)]))
    stacked = torch.stack(draws, dim=1)  # (count, B, N, d)
    if share:
        return SeededNoise(initial=stacked[0], steps=stacked[1] if noisy_steps else ())
    return SeededNoise(initial=stacked[0], steps=tuple(stacked[1:]))


def derived_seed(*parts: int | str) -> int:
    """Return the seed of a stream of randomness that these numbers and words name: 63 well-mixed bits."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
