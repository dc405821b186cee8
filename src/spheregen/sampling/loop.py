"""The few-step loop: generation, editing and restoration are one refinement step with different starts.

What goes from step to step is the model's prediction: an image, or a clean latent that is decoded at the end.

Source: Yue et al. 2026 (arXiv 2602.15030), generation; Do et al. 2026 (arXiv 2605.15592), sampling. Legend: T steps, B
samples, latents (B, N, d), images (B, C, S, S) in [-1, 1], predictions one or the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.models.protocol import SphereGenerator
from spheregen.prior import SPHERE, Prior
from spheregen.sampling.guidance import Guidance, Steered, guide
from spheregen.sampling.schedules import Schedule, refinement_radii

StepNoise = Tensor | Sequence[Tensor]
"""Gaussian noise of the refinement steps: one (B, N, d) tensor shared by all, or one for each step."""


@dataclass(frozen=True)
class Samples:
    """Images of a few-step loop. Where a model predicts latents, those of the last step alone are decoded already."""

    images: Tensor
    """(B, C, S, S) in [-1, 1], of the last step."""
    predictions: tuple[Tensor, ...]
    """What each of the T steps made: images, or latents."""
    to_image: Callable[[Tensor], Tensor] = field(repr=False)
    """Makes images of these."""
    rough: Tensor | None = None
    """(B, C, S, S), the images of the last step as they were before a flow refined them; None where none did."""
    settle: Callable[[Tensor], Tensor] = field(default=lambda images: images, repr=False)
    """Brings images that were changed behind the loop back to what is known of them, as a restoration does."""

    @classmethod
    def of(cls, predictions: Sequence[Tensor], to_image: Callable[[Tensor], Tensor]) -> Samples:
        """The samples of these predictions, the last one decoded."""
        return cls(to_image(predictions[-1]), tuple(predictions), to_image)

    @property
    def decoded(self) -> bool:
        """Whether the images of all steps are there already."""
        return len(self.predictions) == 1 or self.last[0] is self.predictions[-1]

    @property
    def last(self) -> tuple[Tensor, ...]:
        """The images of the last step; where a flow refined them, as they were before, then as they are."""
        return (self.images,) if self.rough is None else (self.rough, self.images)

    @functools.cached_property
    def trajectory(self) -> tuple[Tensor, ...]:
        """The images of every step, each (B, C, S, S), then `last`; decoded when first asked for."""
        with torch.no_grad():
            return (*map(self.to_image, self.predictions[:-1]), *self.last)


def refine(steered: Steered, prediction: Tensor, radius: float, noise: Tensor, *, prior: Prior = SPHERE) -> Tensor:
    """One refinement step, from prediction to prediction: to the latent space, tilt by `radius` of sigma_max along
    `noise`, predict. `prior` is the model's."""
    v = prior.project(steered.to_latent(prediction))
    return steered.predict(prior.tilt(v, noise, radius * steered.sigma_max))


@torch.no_grad()
def sample(
    model: SphereGenerator,
    noise: Tensor,
    labels: Tensor | None = None,
    steps: int = 4,
    schedule: Schedule = "fixed",
    guidance: float | Guidance = 1.0,
    guidance_at: str = "both",
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = True,
) -> Samples:
    """Generate images: predict from random points on the sphere, then refine that steps-1 times.

    Args:
        model: any generator of the family.
        noise: Gaussian noise (B, N, d), or points on the sphere; spherified it is the starting point.
        labels: (B,) int64 class ids or (B, K+1) mixtures; None is the null class of a conditional model.
        steps: T >= 1 predictions.
        schedule: `fixed` (r_t = 1), `decay` (r_t = 1 - t/T), `angle` (alpha_max * (1 - t/T)), T-1 fractions of
            sigma_max, or a function (t, T) -> r_t.
        guidance: scale s, 1 for none; or a `Guidance` of your own.
        guidance_at: `pixel`, `latent` or `both` (sqrt(s) each); both is `latent` for a model that predicts latents.
        step_noise: noise of the refinement steps, one tensor for all or a list of T-1; drawn where None.
        generator: source of the drawn step noise, on the device of `noise` or the CPU.
        share_noise: draw one noise for all refinement steps (the paper's best), else a fresh one for each.

    Raises:
        ConfigError: steps, schedule, guidance or noise that do not fit together.
    """
    radii = refinement_radii(schedule, steps, model.sigma_max)
    _check_shape("noise", noise, model)
    check_labels(labels, noise.shape[0])
    steered = guide(model, labels, guidance, guidance_at)
    directions = step_directions(step_noise, len(radii), noise, generator, share=share_noise)
    predictions = [steered.predict(model.prior.project(noise))]
    for radius, direction in zip(radii, directions, strict=True):
        predictions.append(refine(steered, predictions[-1], radius, direction, prior=model.prior))
    return Samples.of(predictions, model.to_image)


@torch.no_grad()
def reconstruct(model: SphereGenerator, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """D(spherify(E(x))): images (B, C, S, S) in [-1, 1] there and back. `labels=None`: the null class."""
    return model.decode(model.encode(images, labels), labels)


def step_directions(
    given: StepNoise | None, count: int, like: Tensor, generator: torch.Generator | None = None, *, share: bool = True
) -> Iterator[Tensor] | Sequence[Tensor]:
    """The noise of `count` steps: what is given, checked; else one draw for all, or one for each.

    Raises:
        ConfigError: another number of noises, or of another shape than `like`.
    """
    if isinstance(given, Tensor):
        _check_like("step_noise", given, like)
        return [given] * count
    if given is not None:
        if len(given) != count:
            raise ConfigError(f"{len(given)} step noises for {count} noisy steps; give one for each, or one tensor")
        for direction in given:
            _check_like("step_noise", direction, like)
        return given
    if share:
        return [_draw(like, generator)] * count if count else []
    return (_draw(like, generator) for _ in range(count))


def check_labels(labels: Tensor | None, count: int) -> None:
    """Complain unless there is a label for each of `count` samples: a prepared condition does not know their number.

    Raises:
        ConfigError: another number of labels.
    """
    if labels is not None and tuple(labels.shape[:1]) != (count,):
        raise ConfigError(f"labels have shape {tuple(labels.shape)} for {count} samples; give one for each")


def _draw(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device, like.dtype)


def _check_shape(name: str, noise: Tensor, model: SphereGenerator) -> None:
    if tuple(noise.shape[1:]) != tuple(model.latent_shape):
        shape = ", ".join(map(str, model.latent_shape))
        raise ConfigError(f"{name} has shape {tuple(noise.shape)}; this model's latents are (B, {shape})")


def _check_like(name: str, noise: Tensor, like: Tensor) -> None:
    if noise.shape != like.shape:
        raise ConfigError(f"{name} has shape {tuple(noise.shape)} instead of {tuple(like.shape)}")
