"""A generator that makes the conditions of its classes once, for callers that ask for them batch after batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from spheregen.conditioning import Condition
from spheregen.models.protocol import Labels, SphereGenerator
from spheregen.prior import Prior


class RememberedConditions:
    """A generator whose conditions of `classes`, and of the null class, are computed now and looked up later.

    Args:
        model: a conditional generator.
        classes: the ids that will be asked for; others are computed each time.
    """

    def __init__(self, model: SphereGenerator, classes: Iterable[int], device: torch.device) -> None:
        self.model = model
        ids = sorted({*classes, model.num_classes})
        table = model.condition(torch.tensor(ids, device=device))
        assert table is not None  # the generator is conditional
        self._table = table
        self._unknown = len(ids)
        self._places = torch.full((model.num_classes + 1,), self._unknown, device=device)
        self._places[ids] = torch.arange(len(ids), device=device)

    def condition(self, labels: Tensor | None) -> Condition | None:
        if labels is None:
            return self._table.rows(self._places[-1:])
        if labels.is_floating_point():
            return self.model.condition(labels)
        places = self._places[labels]
        if bool((places == self._unknown).any()):
            return self.model.condition(labels)
        return self._table.rows(places)

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
