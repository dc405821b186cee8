"""The noise of a seed without torch: its generator of a CPU and its normal law, in numpy.

Equal to `spheregen.sampling.seeds` but for the last bits, where processors compute logarithms and cosines differently.

Source: Matsumoto and Nishimura 1998, mt19937; Box and Muller 1958, in the order of torch's `normal_`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spheregen.errors import ConfigError

Array = npt.NDArray[np.float32]
SEED_LIMIT = 2**63
_WORD, _BLOCK = 2**32, 16


def gaussians(seed: int, shape: tuple[int, ...], count: int = 1) -> list[Array]:
    """Return the first `count` draws of a seed, each of this shape.

    Raises:
        ConfigError: a seed below 0 or beyond 2^63 - 1.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ConfigError(f"a seed lies between 0 and 2^63 - 1, not {seed}")
    if seed < _WORD:
        return _draws(seed, shape, count)
    seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EB % 2**64
    high, low = divmod(seed ^ (seed >> 31), _WORD)
    pairs = zip(_draws(high, shape, count), _draws(low, shape, count), strict=True)
    return [np.float32(0.6) * a + np.float32(0.8) * b for a, b in pairs]


def refinement_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Array:
    """Return the noise (B, C, S, S) from which the flows of these seeds start."""
    words = (hashlib.blake2b(f"{seed} refinement".encode(), digest_size=8).digest() for seed in seeds)
    own = [(int.from_bytes(word, "little") >> 1) % _WORD for word in words]
    return np.stack([noise for seed in own for noise in gaussians(seed, shape)])


def _draws(seed: int, shape: tuple[int, ...], count: int) -> list[Array]:
    words = _Words(seed)
    numbers = math.prod(shape)
    draw = _many if numbers >= _BLOCK else _few
    return [draw(words, numbers).reshape(shape) for _ in range(count)]


class _Words:
    """The words of a seed's generator, and the Gaussian that a pair of uniforms left over."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.MT19937()
        self.generator._legacy_seeding(seed)
        self.left: float | None = None

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Draw numbers in [0, 1) of 24 bits, a word each."""
        return (self.generator.random_raw(count) & 0xFFFFFF) / 2**24

    def wide(self) -> float:
        """Draw a number in [0, 1) of 53 bits, two words."""
        first, second = (int(word) for word in self.generator.random_raw(2))
        return ((first << 32 | second) & (2**53 - 1)) / 2**53


def _many(words: _Words, count: int) -> Array:
    """Draw 16 numbers or more: blocks of 16, of whose halves pairs are made; the last block begins anew."""
    whole = count // _BLOCK * _BLOCK
    out = np.empty(count, np.float32)
    uniform = words.uniform(count)
    out[:whole] = _pairs(uniform[:whole])
    if whole < count:
        out[-_BLOCK:] = _pairs(words.uniform(_BLOCK))
    return out


def _pairs(uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    first, second = uniform.reshape(-1, 2, _BLOCK // 2).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _few(words: _Words, count: int) -> Array:
    """Draw fewer than 16 numbers, one by one; every second one is kept from the one before."""
    out = np.empty(count, np.float32)
    for place in range(count):
        if words.left is None:
            angle, other = 2 * math.pi * words.wide(), words.wide()
            radius = math.sqrt(-2 * math.log1p(-other))
            out[place], words.left = radius * math.cos(angle), radius * math.sin(angle)
        else:
            out[place], words.left = words.left, None
    return out
