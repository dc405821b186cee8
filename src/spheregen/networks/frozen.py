"""Modules that never train, tokenizers among them, and what networks of ImageNet expect of images."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from spheregen.sphere import upcast

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Frozen(nn.Module):
    """A module that is never trained: always in evaluation mode, also where the module that holds it trains."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the networks compute."""
        return next(self.parameters()).dtype

    def freeze(self) -> Self:
        """Freeze the weights; to be called when everything is built."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class FrozenTokenizer(Frozen):
    """A frozen `Tokenizer`; a class derived from it sets the shapes and defines the way there and back."""

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int]

    def to_latents(self, images: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [-1, 1] as normalised latents (B, N, d)."""
        raise NotImplementedError

    def to_images(self, latents: Tensor) -> Tensor:
        """Return normalised latents (B, N, d) as images (B, C, S, S) about [-1, 1]."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, S, S) in [-1, 1] to normalised latents (B, N, d)."""
        check_shape(images, self.image_shape, "images")
        return self.to_latents(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, N, d) to images (B, C, S, S), clamped to [-1, 1]."""
        check_shape(latents, self.latent_shape, "latents")
        return upcast(self.to_images(latents)).clamp(-1, 1)


def check_shape(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Check that `x` is a batch of this shape.

    Raises:
        ValueError: it is not.
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{what} have shape {tuple(x.shape)}; this model takes (B, {', '.join(map(str, shape))})")
