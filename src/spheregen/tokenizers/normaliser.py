"""Latents of a frozen tokenizer brought to mean 0 and variance 1, as the noise that they are mixed with has them.

Legend: B samples, N tokens, d channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, DataError
from spheregen.nn.batch_norm import Moments
from spheregen.sphere import upcast

EPS = 1e-5
"""Added to a variance before its root; the value of the published RAE."""

Per = Literal["channel", "position"]


class Wide(nn.Module):
    """A module whose tensors stay at least float32 when the model around it is cast to a half type."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        return super()._apply(keep_wide, recurse)  # type: ignore[no-untyped-call, no-any-return]


class Normaliser(Wide):
    """`(z - mean) / std` of latents (B, N, d), and back; in float32 or wider, whatever the type of `z`.

    Args:
        mean, std: (1, d) for each channel, or (N, d) for each number of a latent; std is positive.
        persistent: whether they are part of the state dictionary.

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
        """Statistics that change nothing, to be replaced by those of a state dictionary; `tokens` > 1: by position."""
        return cls(torch.zeros(tokens, channels), torch.ones(tokens, channels))

    def forward(self, z: Tensor) -> Tensor:
        """Latents (B, N, d) as the network gives them to normalised ones."""
        return (upcast(z) - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Normalised latents (B, N, d) to those of the network."""
        return upcast(z) * self.std + self.mean


@torch.no_grad()
def measure(
    batches: Iterable[Tensor],
    *,
    per: Per = "channel",
    gather: Callable[[object], list[Any]] = lambda value: [value],
) -> Normaliser:
    """The normaliser of a data set, from one pass over its latents, in float64 (Chan et al. 1983).

    Args:
        batches: raw latents (B, N, d); only one batch is held at a time. A process may have none.
        per: statistics of each channel over samples and tokens, or of each number of a latent over samples.
        gather: all-gathers an object over processes, in their order, where each has a part of the data.

    Raises:
        DataError: there are no latents at all, they differ in shape, or they are not finite.
    """
    shape: tuple[int, ...] | None = None
    parts: list[Moments] = []
    for latents in batches:
        if latents.ndim != 3 or (shape is not None and tuple(latents.shape[1:]) != shape):
            wanted = "(B, N, d)" if shape is None else f"(B, {shape[0]}, {shape[1]}) as before"
            raise DataError(f"latents have the shape {tuple(latents.shape)}, not {wanted}; encode images of one size")
        if latents.shape[0] == 0:
            continue
        shape = tuple(latents.shape[1:])
        parts = [reduce(Moments.__add__, [*parts, Moments.of(latents if per == "channel" else latents.flatten(1))])]
    everywhere = gather((shape, parts))
    shapes = {found for found, _ in everywhere if found is not None}
    if not shapes:
        raise DataError("there are no latents to measure; encode at least one image")
    if len(shapes) > 1:
        raise DataError(f"the processes have latents of different shapes, {sorted(shapes)}; encode images of one size")
    total = reduce(Moments.__add__, [part for _, found in everywhere for part in found])
    if not bool(total.mean.isfinite().all() and total.squares.isfinite().all()):
        raise DataError("the latents are not finite; encode in float32 or bfloat16, and check the images")
    rows = 1 if per == "channel" else next(iter(shapes))[0]
    return Normaliser.of_variance(total.mean.view(rows, -1), (total.squares / total.count).view(rows, -1))
