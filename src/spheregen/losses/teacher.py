"""A refined generator whose few-step images another refiner learns to make in one.

A flow takes every start to one end, so a refiner that learns ends from starts has no mean of many images to settle for,
as it has when it learns the images of a data set. Source: Liu et al. 2022 (arXiv 2209.03003), distillation of a
rectified flow. Legend: B samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.models.flow_refiner import FlowRefinerConfig, RefinedGenerator, RoughContext
from spheregen.sampling.guidance import guide
from spheregen.sampling.refinement import Refinement, Rough, refine_images


@dataclass(frozen=True)
class Teacher:
    """A refined generator with the settings of its images.

    Args:
        network: frozen.
        refinement: its flow.
        guidance: of its rough images, at all places that the generator in front has.
    """

    network: RefinedGenerator
    refinement: Refinement
    guidance: float = 1.0

    def check(self, student: FlowRefinerConfig) -> None:
        """Refuse a refiner that cannot learn from it.

        Raises:
            ConfigError: another rho, other classes, other images, or told other things of the rough image.
        """
        for name in ("rho", "num_classes", "image_size", "image_channels", "latent_channels", "decoder_width"):
            ours, theirs = getattr(student, name), getattr(self.network.config, name)
            if ours != theirs:
                raise ConfigError(f"model.{name} is {ours}, the teacher's {theirs}: they must agree")
        if not self.network.num_classes and (self.guidance, self.refinement.guidance) != (1, 1):
            raise ConfigError("the teacher has no classes to guide towards: leave its guidance at 1")

    @property
    def guides_rough(self) -> bool:
        """Whether a rough image takes two decodes."""
        return self.guidance != 1 and self.network.source.num_classes > 0

    @torch.no_grad()
    def rough(self, points: Tensor, labels: Tensor | None) -> tuple[Tensor, RoughContext]:
        """The rough images (B, C, S, S) of points (B, N, d) and their context, under labels (B,), as in sampling."""
        front = Rough(self.network)
        prediction = guide(front, labels, self.guidance if self.guides_rough else 1.0).predict(points)
        assert front.context is not None
        of_labels = front.context[slice(0, len(points))]  # under guidance the null class follows
        return self.network.to_image(prediction), of_labels

    def ends(self, rough: Tensor, labels: Tensor | None, noise: Tensor, context: RoughContext | None) -> Tensor:
        """Where the flow takes rough images (B, C, S, S) under noise of that shape: images in [-1, 1]."""
        return refine_images(self.network, rough, labels, self.refinement, noise=noise, context=context)
