"""Modules that never train, and what networks of ImageNet expect of images."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Frozen(nn.Module):
    """A module that is never trained: always in evaluation mode, also where the module that holds it trains."""

    def freeze(self) -> Self:
        """Freeze the weights; to be called when everything is built."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


def check_shape(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Check that `x` is a batch of this shape.

    Raises:
        ValueError: it is not.
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{what} have shape {tuple(x.shape)}; this model takes (B, {', '.join(map(str, shape))})")
