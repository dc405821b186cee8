"""What every generator of the family answers to, so that sampling, editing and evaluation are written once."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SphereGenerator(Protocol):
    """A decoder from the sphere to images, with an encoder back.

    Legend: B samples, C image channels, S image size, L = prod(latent_shape) numbers of a latent.
    """

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent, (N, d)."""

    @property
    def num_classes(self) -> int:
        """Classes that labels may name; 0 for an unconditional generator. The null class is id `num_classes`."""

    @property
    def sigma_max(self) -> float:
        """The largest noise magnitude of training, tan(alpha_max): what schedules are fractions of."""

    def encode_raw(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to latents (B, N, d) before the sphere: guidance combines these."""

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to points on the sphere (B, N, d). `labels=None`: the null class."""

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Points on the sphere to images in [-1, 1]. `labels=None`: the null class."""
