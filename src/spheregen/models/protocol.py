"""What every generator of the family answers to, so that sampling, editing and evaluation are written once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from spheregen.conditioning import Condition
from spheregen.prior import Prior

Labels = Tensor | Condition | None
"""Class ids (B,), mixtures (B, num_classes + 1), a prepared condition of B samples, or None for the null class."""


@runtime_checkable
class SphereGenerator(Protocol):
    """A decoder from the sphere to images, with an encoder back.

    The sphere is that of the paper; a model of another `prior` has another latent space in its place.

    Legend: B samples, C image channels, S image size, L = prod(latent_shape) numbers of a latent. Labels are described
    in `spheregen.conditioning`.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, S, S)."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent, (N, d)."""

    @property
    def num_classes(self) -> int:
        """Classes that labels may name; 0 for an unconditional generator. The null class is id `num_classes`."""

    @property
    def sigma_max(self) -> float:
        """The largest noise magnitude of training, tan(alpha_max): what schedules are fractions of."""

    @property
    def prior(self) -> Prior:
        """The latent space: how raw latents and noise enter it, and how noise moves points of it."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the networks compute; images and latents outside are float32, or float64 under float64."""

    def condition(self, labels: Tensor | None) -> Condition | None:
        """What the three calls below take in place of `labels`, computed once; None for an unconditional generator."""

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to latents (B, N, d) before the sphere: guidance combines these."""

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to points on the sphere (B, N, d). `labels=None`: the null class."""

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        """Points on the sphere to images in [-1, 1]. `labels=None`: the null class."""
