"""One seed per image: an image depends on its seed alone, never on batch size, position or device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from spheregen.errors import ConfigError

SEED_LIMIT = 2**63
_WORD = 2**32
"""torch's generator of a CPU takes so many seeds and no more: it drops the upper bits of larger ones."""


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

    Raises:
        ConfigError: a seed below 0 or beyond 2^63 - 1.
    """
    count = 1 + (min(noisy_steps, 1) if share else noisy_steps)
    # one draw for each noise: a larger draw would fill its numbers in another order
    draws = [torch.stack(gaussians(seed, shape, count)) for seed in check_seeds(seeds)]
    stacked = torch.stack(draws, dim=1)  # (count, B, N, d)
    if share:
        return SeededNoise(initial=stacked[0], steps=stacked[1] if noisy_steps else ())
    return SeededNoise(initial=stacked[0], steps=tuple(stacked[1:]))


def gaussians(seed: int, shape: tuple[int, ...], count: int = 1) -> list[Tensor]:
    """Return the first `count` draws of a seed, each of this shape, float32 on the CPU."""
    if seed < _WORD:
        return _draws(seed, shape, count)
    # a one-to-one mixture of the bits (splitmix64), so that neighbours share neither half; of each half a Gaussian,
    # which weights whose squares sum to 1 join to another one
    seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB % 2**64
    high, low = divmod(seed ^ (seed >> 31), _WORD)
    return [0.6 * a + 0.8 * b for a, b in zip(_draws(high, shape, count), _draws(low, shape, count), strict=True)]


def _draws(seed: int, shape: tuple[int, ...], count: int) -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for _ in range(count)]


def check_seeds(seeds: Iterable[int]) -> Sequence[int]:
    """Return seeds as plain integers, where they are whole numbers of any library.

    Raises:
        ConfigError: there is none, or one that is no whole number, negative, or too large.
    """
    try:
        found = seeds if isinstance(seeds, range) else [index(seed) for seed in seeds]
    except TypeError as error:
        raise ConfigError(f"seeds are whole numbers, one for each image, not {seeds!r:.100}") from error
    if not found:
        raise ConfigError("no seeds: the number of images is at least 1, not 0")
    for edge in (found[0], found[-1]) if isinstance(found, range) else found:
        if not 0 <= edge < SEED_LIMIT:
            raise ConfigError(f"a seed lies between 0 and 2^63 - 1, not {edge}")
    return found


def derived_seed(*parts: int | str) -> int:
    """Return the seed of a stream of randomness that these numbers and words name: 63 well-mixed bits."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
