"""Latents of a frozen tokenizer brought to mean 0 and variance 1, as the noise that they are mixed with has them.

Legend: B samples, N tokens, d channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, Literal, Self

import torch
from torch import Tensor

from spheregen.errors import ConfigError, DataError
from spheregen.nn.norm import Moments, Wide
from spheregen.sphere import upcast

EPS = 1e-5
"""Added to a variance before its root; the value of the published RAE."""

Per = Literal["channel", "position"]


class Normaliser(Wide):
    """`(z - mean) / std` of latents (B, N, d), and back; in float32 or wider, whatever the type of `z`.

    Args:
        mean, std: (1, d) for each channel, or (N, d) for each number of a latent; std is positive.
        persistent: they are part of the state dictionary.

    Raises:
        ConfigError: other shapes, or a std that is not positive and finite.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, *, persistent: bool = True) -> None:
        super().__init__()
        if mean.ndim != 2 or mean.shape != std.shape:
            raise ConfigError(
                f"latent statistics have the shape (1, channels) or (tokens, channels), both alike, not "
                f"{tuple(mean.shape)} and {tuple(std.shape)}; measure them again"
            )
        if not mean.is_meta and not bool((mean.isfinite() & (std > 0) & std.isfinite()).all()):
            raise ConfigError("latent statistics are not finite or a deviation is not positive; measure them again")
        self.register_buffer("mean", mean.detach().float().clone(), persistent=persistent)
        self.register_buffer("std", std.detach().float().clone(), persistent=persistent)

    @classmethod
    def of_variance(cls, mean: Tensor, variance: Tensor, *, eps: float = EPS) -> Self:
        """`(z - mean) / sqrt(variance + eps)`; the root is taken in float64."""
        return cls(mean, (variance.double() + eps).sqrt())

    @classmethod
    def identity(cls, channels: int, tokens: int = 1) -> Self:
        """Return statistics that change nothing, for a state dictionary to fill; `tokens` > 1: by position."""
        return cls(torch.zeros(tokens, channels), torch.ones(tokens, channels))

    def forward(self, z: Tensor) -> Tensor:
        """Normalise latents (B, N, d) as the network gives them."""
        return (upcast(z) - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Return the network's own latents of normalised ones (B, N, d)."""
        return upcast(z) * self.std + self.mean


@torch.no_grad()
def measure(batches: Iterable[Tensor], *, gather: Callable[[object], list[Any]] = lambda value: [value]) -> Normaliser:
    """Measure the normaliser of a data set by channel, in one pass over its latents, in float64 (Chan et al. 1983).

    Args:
        batches: raw latents (B, N, d); only one batch is held at a time. A process may have none.
        gather: all-gathers an object over processes, in their order, where each has a part of the data.

    Raises:
        DataError: there are no latents at all, or they are not finite.
    """
    own: list[Moments] = []
    for latents in batches:
        if len(latents):
            own = [reduce(Moments.__add__, [*own, Moments.of(latents)])]
    parts = [part for process in gather(own) for part in process]
    if not parts:
        raise DataError("there are no latents to measure; encode at least one image")
    total = reduce(Moments.__add__, parts)
    if not bool(total.mean.isfinite().all() and total.squares.isfinite().all()):
        raise DataError("the latents are not finite; encode in float32 or bfloat16, and check the images")
    return Normaliser.of_variance(total.mean[None], (total.squares / total.count)[None])
