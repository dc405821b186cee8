"""Refining the rough images of any few-step loop by a flow.

A loop runs on `Rough`, a view of the generator that remembers what the last image was decoded from; `refine_samples`
then runs the flow from its images. So generation, reconstruction, every edit and every restoration are refined alike.

Source: Sphere Flow. Legend: B samples, N steps, images (B, C, S, S) in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spheregen.conditioning import null_labels
from spheregen.errors import ConfigError
from spheregen.models.flow_refiner import RefinedGenerator, RoughContext
from spheregen.models.protocol import Labels, SphereGenerator
from spheregen.sampling.flow import check_flow, integrate
from spheregen.sampling.loop import Samples
from spheregen.sampling.seeds import derived_seed
from spheregen.sampling.view import GeneratorView


@dataclass(frozen=True)
class Refinement:
    """How images are refined.

    Raises:
        ConfigError: impossible numbers.
    """

    steps: int = 4
    """N steps of the flow; 0 leaves images rough."""
    solver: str = "heun"
    """`euler`, `heun` or `midpoint`; the last step is the plain prediction under each."""
    guidance: float = 1.0
    """Classifier-free guidance of the predicted images; 1 for none."""

    def __post_init__(self) -> None:
        check_flow(self.steps, self.solver)
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"refinement_guidance is not negative, and finite: {self.guidance:g}")


class Rough(GeneratorView):
    """The generator in front of a refiner, as a loop runs it; remembers the context of its last prediction.

    Args:
        network: the refined generator.
        generator: the same, or a wrapper of it that answers to `SphereGenerator`, such as `RememberedConditions`.
    """

    def __init__(self, network: RefinedGenerator, generator: SphereGenerator | None = None) -> None:
        super().__init__(network if generator is None else generator)
        self.network = network
        self.context: RoughContext | None = None

    def predict(self, latents: Tensor, labels: Labels = None) -> Tensor:
        prediction, self.context = self.network.predict_with_context(latents, labels)
        return prediction

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.to_image(self.predict(latents, labels))


@torch.no_grad()
def refine_images(
    network: RefinedGenerator,
    images: Tensor,
    labels: Tensor | None = None,
    refinement: Refinement | None = None,
    *,
    noise: Tensor | None = None,
    context: RoughContext | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Refine rough images (B, C, S, S) in [-1, 1] of any origin.

    Args:
        labels: (B,) int64 class ids or (B, K+1) mixtures; None is the null class.
        noise: Gaussian (B, C, S, S) of the start rho * noise + (1 - rho) * image; drawn where None.
        context: what the images were decoded from; None encodes and decodes them to find what the refiner is told.
        generator: source of the drawn noise, on the device of the images or the CPU.

    Raises:
        ConfigError: guidance without labels, or noise of another shape.
    """
    how = refinement or Refinement()
    if not how.steps:
        return images
    rho = network.config.rho
    if noise is None:
        device = images.device if generator is None else generator.device
        noise = torch.randn(images.shape, generator=generator, device=device).to(images.device, images.dtype)
    elif noise.shape != images.shape:
        raise ConfigError(f"noise has shape {tuple(noise.shape)} for images of shape {tuple(images.shape)}")
    if context is None and network.config.context_tokens:
        _, context = network.predict_with_context(network.encode(images, labels), network.condition(labels))
    guided = how.guidance != 1 and network.config.num_classes > 0
    if guided and labels is None:
        raise ConfigError("guidance steers towards a class: give labels, or refinement_guidance 1")
    both, told, twice = labels, context, images
    if guided:
        assert labels is not None
        both = torch.cat([labels, null_labels(labels, network.num_classes)])
        told = None if context is None else context.twice()
        twice = torch.cat([images, images])

    def end(x: Tensor, t: float) -> Tensor:
        times = torch.full((x.shape[0] * (2 if guided else 1),), t, device=x.device, dtype=x.dtype)
        if not guided:
            return network.refined(x, times, labels, context, images)
        conditional, unconditional = network.refined(torch.cat([x, x]), times, both, told, twice).chunk(2)
        return unconditional + how.guidance * (conditional - unconditional)

    start = rho * noise + (1 - rho) * images
    return integrate(end, start, how.steps, how.solver).clamp(-1, 1)


def refine_samples(
    rough: Rough, samples: Samples, labels: Tensor | None, refinement: Refinement, noise: Tensor
) -> Samples:
    """The samples of a loop that ran on `rough` with the refined images behind them, as one more of its steps.

    Where the loop holds on to known pixels, refined images do too.

    Args:
        labels, noise: as in `refine_images`.
    """
    if not refinement.steps:
        return samples
    count = samples.images.shape[0]
    context = None if rough.context is None else rough.context[slice(0, count)]  # under guidance the null class follows
    images = refine_images(rough.network, samples.images, labels, refinement, noise=noise, context=context)
    return dataclasses.replace(samples, images=samples.settle(images), rough=samples.images)


def refinement_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """The noise (B, C, S, S) from which the flows of these seeds start, on the CPU; a stream of its own, so that it
    depends neither on the steps of the loop nor on its noise."""
    own = (torch.Generator().manual_seed(derived_seed(seed, "refinement")) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=generator) for generator in own])
