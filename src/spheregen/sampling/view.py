"""A generator that does what another one does, for wrappers that change a part of it."""

from __future__ import annotations

import torch
from torch import Tensor

from spheregen.conditioning import Condition
from spheregen.models.protocol import Labels, SphereGenerator
from spheregen.prior import Prior


class GeneratorView:
    """A `SphereGenerator` that passes everything on.

    Args:
        model: the generator behind.
    """

    def __init__(self, model: SphereGenerator) -> None:
        self.model = model

    def condition(self, labels: Tensor | None) -> Condition | None:
        return self.model.condition(labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.model.image_shape

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.model.latent_shape

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def sigma_max(self) -> float:
        return self.model.sigma_max

    @property
    def prior(self) -> Prior:
        return self.model.prior

    @property
    def guidance_places(self) -> tuple[str, ...]:
        return self.model.guidance_places

    def predict(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.model.predict(latents, labels)

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return self.model.to_latent(prediction, labels)

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.model.to_image(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.model.from_image(images)

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return self.model.mix(first, second, mask)

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.model.encode_raw(images, labels)

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.model.encode(images, labels)

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.model.decode(latents, labels)
