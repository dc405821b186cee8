"""Our own autoencoder as the tokenizer of a latent denoiser: its latents lie on a sphere already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.networks.frozen import Frozen, check_shape

if TYPE_CHECKING:
    from spheregen.family.sphere_encoder.network import SphereAutoencoder


class SphereTokenizer(Frozen):
    """A trained `SphereAutoencoder`, frozen, without conditions; a `Tokenizer`.

    Latents are points on its sphere: their mean square over all numbers of a sample is 1, so they and Gaussian noise
    are of one size without further statistics. A class-conditional model encodes and decodes under its null class.

    Raises:
        ConfigError: the model has no sphere (prior "gaussian"): nothing holds the size of its latents.
    """

    def __init__(self, model: SphereAutoencoder) -> None:
        super().__init__()
        if model.config.prior != "sphere":
            raise ConfigError(
                f"an autoencoder with the prior {model.config.prior!r} is no tokenizer: its latents are of any size; "
                "take one with the prior 'sphere'"
            )
        self.model = model
        self.freeze()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.model.image_shape

    @property
    def latent_shape(self) -> tuple[int, int]:
        return self.model.config.tokens, self.model.config.channels

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, S, S) in [-1, 1] to points on the sphere (B, N, d)."""
        check_shape(images, self.image_shape, "images")
        return self.model.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, N, d), which are put on the sphere first, to images (B, C, S, S) clamped to [-1, 1]."""
        check_shape(latents, self.latent_shape, "latents")
        return self.model.decode(self.model.prior.project(latents))
