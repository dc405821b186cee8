"""The few-step loop and its guidance: generation, editing and restoration are one loop with different starts.

What goes from step to step is the model's prediction: an image, or a clean latent that is decoded at the end. Guidance
wraps the model before the loop: it is called with a generator and a condition and returns the `GuidedModel` that the
loop runs. The one that the papers use is `ClassifierFreeGuidance`; a researcher's own takes its place wherever a
guidance scale is accepted.

Source: Yue et al. 2026 (arXiv 2602.15030), generation and its guidance at the decoder, the encoder, or both (method.md,
section 1.3); Do et al. 2026 (arXiv 2605.15592), sampling and guidance of the clean latents (method.md, section 2).
Legend: T steps, B samples, latents (B, N, d), images (B, C, S, S) in [-1, 1], predictions one or the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from spheregen.conditioning import Condition, Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, did_you_mean
from spheregen.prior import Angle, Prior
from spheregen.protocol import PRIOR, Context, SphereGenerator
from spheregen.sampling.schedules import Schedule, generation_angles
from spheregen.sphere import per_sample, upcast

StepNoise = Tensor | Sequence[Tensor]
"""Gaussian noise of the noisy steps: one (B, N, d) tensor shared by all, or one for each step."""
Callback = Callable[[int, int, Tensor], object]
"""Called after each step with its number t = 1 .. T, T and the prediction."""
PLACES = ("pixel", "latent", "both")
STARTS = ("sphere", "fitted")

# guidance -------------------------------------------------------------------------------------------------------------


class GuidedModel(Protocol):
    """A generator under a condition: all that a sampling loop calls."""

    @property
    def prior(self) -> Prior:
        """The latent space."""

    # A guidance that follows several predictions from step to step says how many in `streams` (1 where it does not):
    # a batch then holds those of B samples one stream behind the other, and the first stream is what comes out.

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        """Return predictions, images (B, C, S, S) in [-1, 1] or clean latents (B, N, d), and what a refiner is told.

        Args:
            v: points (B, N, d).
            angle: radians: how far noise moved them.
        """

    def to_latent(self, prediction: Tensor) -> Tensor:
        """Return predictions as latents (B, N, d) before the sphere."""


Guidance = Callable[[SphereGenerator, Condition], GuidedModel]
"""Makes a generator follow its condition."""
TOGETHER = 1e-6
"""Latents whose difference is no longer than this are not turned away from one another."""


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """out = uncond + s * (cond - uncond): s = 1 is no guidance, s = 0 the null class.

    `place` says what is combined: decoded images (`pixel`, clamped to [-1, 1]), raw latents (`latent`), or `both` with
    sqrt(s) each. A model that predicts latents is guided there alone, so `both` is `latent` for it. Condition and null
    class go through the network as one batch.

    Raises:
        ConfigError: an unknown place, or a scale that is negative or not finite.
    """

    scale: float = 1.0
    place: str = "both"

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            hint = did_you_mean(self.place, PLACES)
            raise ConfigError(f"unknown guidance place {self.place!r}{hint}; use {', '.join(PLACES)}")
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"guidance is not negative, and finite: {self.scale:g}")

    def __call__(self, model: SphereGenerator, condition: Condition) -> Guided:
        """Return `model` under `condition`.

        Raises:
            ConfigError: a scale other than 1 without labels to guide towards, or a place that the model has not.
        """
        places = model.guidance_places if self.place == "both" else (self.place,)
        _check_places(model, places)
        if self.scale != 1 and condition.index is None:
            raise ConfigError("guidance steers towards a class: give labels, or guidance 1 for an unconditional sample")
        each = self.scale if len(places) == 1 else math.sqrt(self.scale)
        return Guided(model, condition, *(each if place in places else 1 for place in ("pixel", "latent")))


class Guided:
    """A generator under classifier-free guidance.

    Args:
        model: the generator.
        condition: of the B samples.
        pixel_scale: of predictions, where they are images.
        latent_scale: of raw latents, or of predictions where they are latents.

    Raises:
        ConfigError: a scale other than 1 at a place that the model has not.
    """

    def __init__(
        self, model: SphereGenerator, condition: Condition, pixel_scale: float = 1.0, latent_scale: float = 1.0
    ) -> None:
        scales = {"pixel": pixel_scale, "latent": latent_scale}
        _check_places(model, [place for place, scale in scales.items() if scale != 1])
        self.model, self.prior, self.condition = model, model.prior, condition
        self.both = condition.with_null()
        """Of 2 B samples: under their labels, then under the null class."""
        self.pixel_scale, self.latent_scale = pixel_scale, latent_scale

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        model, images = self.model, self.model.predicts_images
        scale = self.pixel_scale if images else self.latent_scale
        run = model.predict_with_context if model.refiner is not None else lambda *of: (model.predict(*of), None)
        if scale == 1:
            return run(v, self.condition, angle)
        twice = torch.cat([angle, angle]) if isinstance(angle, Tensor) and angle.ndim else angle
        pair, context = run(torch.cat([v, v]), self.both, twice)
        prediction = _guide(pair, scale).clamp(-1, 1) if images else _guide(pair, scale)
        return prediction, None if context is None else context[slice(0, len(v))]

    def to_latent(self, prediction: Tensor) -> Tensor:
        scale = self.latent_scale if self.model.predicts_images else 1.0
        if scale == 1:
            return self.model.to_latent(prediction, self.condition)
        return _guide(self.model.to_latent(torch.cat([prediction, prediction]), self.both), scale)


@dataclass(frozen=True)
class RotationGuidance:
    """Turn each latent away from that of a second prediction, under the null class, in their common plane.

    Both predictions go through all steps. It acts from the second step on.

    Raises:
        ConfigError: an unknown place, or an angle outside 0 to 90 degrees.

    Source: Sphere Encoder 2 (arXiv 2610.02208), guidance by rotation (method.md, section 4).
    """

    degrees: float = 0.0
    """0 is no guidance."""
    place: str = "both"
    """Read for scales alone: it acts on latents."""

    def __post_init__(self) -> None:
        ClassifierFreeGuidance(1.0, self.place)  # complains of an unknown place
        if not 0 <= self.degrees <= 90:
            raise ConfigError(f"guidance of this model is an angle from 0 to 90 degrees, not {self.degrees:g}")

    def __call__(self, model: SphereGenerator, condition: Condition) -> GuidedModel:
        """Return `model` under `condition`.

        Raises:
            ConfigError: an angle without labels to guide towards.
        """
        if not self.degrees:
            return Guided(model, condition)
        if condition.index is None:
            raise ConfigError("guidance steers towards a class: give labels, or guidance 0 for an unconditional sample")
        return Turned(model, condition, math.radians(self.degrees))


class Turned:
    """A generator under `RotationGuidance`, with a second stream of predictions under the null class.

    Args:
        model: the generator.
        condition: of the B samples.
        angle: radians.
    """

    streams = 2

    def __init__(self, model: SphereGenerator, condition: Condition, angle: float) -> None:
        self.model, self.prior, self.condition, self.angle = model, model.prior, condition, angle
        self.both = condition.with_null()

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        """Return predictions for points of both streams (2B, N, d), or of the first one alone."""
        alone = self.condition.index is not None and len(v) == len(self.condition.index)
        condition = self.condition if alone else self.both
        if self.model.refiner is None:
            return self.model.predict(v, condition, angle), None
        return self.model.predict_with_context(v, condition, angle)

    def to_latent(self, prediction: Tensor) -> Tensor:
        raw = self.model.to_latent(prediction, self.both)
        away, null = self.prior.project(raw).chunk(2)
        return torch.cat([turn_away(self.prior, away, null, self.angle), raw.chunk(2)[1]])


def turn_away(prior: Prior, v: Tensor, reference: Tensor, angle: Angle) -> Tensor:
    """Return points (B, ...) turned by `angle` radians away from a reference, in the plane of the two.

    t = f(cos(v, r) v - r); the point is cos(angle) v + sin(angle) t, in float32 or wider. Points that lie on their
    reference stay where they are.
    """
    wide, other = upcast(v), upcast(reference)
    cosine = torch.cosine_similarity(wide.flatten(1), other.flatten(1), dim=1)
    apart = per_sample(cosine, wide) * wide - other
    by = per_sample(angle, wide) if isinstance(angle, Tensor) else torch.tensor(angle, dtype=torch.float64)
    turned = torch.cos(by).to(wide.dtype) * wide + torch.sin(by).to(wide.dtype) * prior.project(apart)
    still = torch.linalg.vector_norm(apart.flatten(1), dim=1) <= TOGETHER
    return torch.where(per_sample(still, wide), wide, turned)


GUIDANCES: Mapping[str, Callable[[float, str], Guidance]] = MappingProxyType(
    {"scale": ClassifierFreeGuidance, "rotation": RotationGuidance}
)
"""The laws of guidance by a number at a place, by the name that a model says its own by."""


def _guide(pair: Tensor, scale: float) -> Tensor:
    conditional, unconditional = pair.chunk(2)
    return unconditional + scale * (conditional - unconditional)  # method.md 1.3


def _check_places(model: SphereGenerator, asked: Iterable[str]) -> None:
    for place in asked:
        if place not in model.guidance_places:
            raise ConfigError(
                f"this model has no {place} guidance, it is guided at {' and '.join(model.guidance_places)}; set "
                f"guidance_at to {model.guidance_places[0]} or both"
            )


def guide(
    model: SphereGenerator, labels: Labels, guidance: float | Guidance | None = None, place: str = "both"
) -> GuidedModel:
    """Return `model` under labels, guided by a number of its law, at a place (pixel, latent or both) where that has
    one, or by a guidance of yours; None: unguided."""
    if guidance is None:
        guidance = model.unguided
    if isinstance(guidance, int | float):
        guidance = GUIDANCES[model.guidance_law](guidance, place)
    return guidance(model, model.condition(labels))


# the start ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Start:
    """The points that a loop starts from.

    Raises:
        ConfigError: an unknown prior, or a number out of its range.
    """

    prior: str = "sphere"
    """`sphere`: uniform points, or what a model of another latent space draws; `fitted`: points where the codes of its
    data are, see `FittedPrior`."""
    temperature: float = 1.0
    """Of a fitted prior: 0 draws a class's mean, 1 from the density as fitted."""
    prior_angle: float = 0.0
    """Degrees, 0 to 90, by which noise moves draws of a fitted prior; at 90 they are uniform."""

    def __post_init__(self) -> None:
        if self.prior not in STARTS:
            hint = did_you_mean(self.prior, STARTS)
            raise ConfigError(f"unknown prior {self.prior!r}{hint}; use {', '.join(STARTS)}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature is not negative, and finite: {self.temperature:g}")
        if not 0 <= self.prior_angle <= 90:
            raise ConfigError(f"prior_angle lies between 0 and 90 degrees, not {self.prior_angle:g}")
        if self.prior != "fitted" and (self.temperature, self.prior_angle) != (1, 0):
            raise ConfigError("temperature and prior_angle are of a fitted prior; give prior=fitted with them")

    def points(self, model: SphereGenerator, noise: Tensor, condition: Condition) -> tuple[Tensor, float]:
        """Return the points (B, N, d) of Gaussian noise, and the angle in radians that `predict` is told of them.

        Raises:
            ConfigError: the model has no fitted prior.
        """
        if self.prior != "fitted":
            return model.prior.project(noise), math.radians(model.start_angle)
        if model.fitted is None:
            raise ConfigError(
                "this model has no fitted prior; fit one with: spheregen fit-prior MODEL --data SRC, or leave prior out"
            )
        told = condition.of(PRIOR)
        weights = model.fitted.embed_labels(None)[-1:] if told is None else told.embedding
        drawn = model.prior.project(model.fitted.draw(noise, weights, self.temperature))
        angle = math.radians(self.prior_angle)
        return model.prior.perturb(drawn, noise, angle), angle


# the loop -------------------------------------------------------------------------------------------------------------


def same(prediction: Tensor) -> Tensor:
    """Return the prediction as it is."""
    return prediction


@dataclass(frozen=True)
class Samples:
    """Images of a few-step loop. Where a model predicts latents, those of the last step alone are decoded already."""

    images: Tensor
    """(B, C, S, S) in [-1, 1], of the last step."""
    predictions: tuple[Tensor, ...]
    """The results of the T steps: images, or latents."""
    to_image: Callable[[Tensor], Tensor] = field(default=same, repr=False)
    """Makes images of these."""
    context: Context | None = None
    """The context of the images for a refiner; None where they came from none of the loop's steps."""
    rough: Tensor | None = None
    """(B, C, S, S), the images of the last step as they were before a flow refined them; None where none did."""
    agree: Callable[[Tensor], Tensor] = field(default=same, repr=False)
    """Brings images that were changed behind the loop back to what is known of them, as a restoration does."""

    @property
    def decoded(self) -> bool:
        """The images of all steps are there already."""
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


def refine(guided: GuidedModel, prediction: Tensor, angle: float, noise: Tensor) -> tuple[Tensor, Context | None]:
    """Take one step from prediction to prediction: to the latent space, noise of `angle` radians, predict.

    Args:
        guided: the generator under its condition.
        prediction: of all its streams.
        angle: radians.
        noise: of as many samples as the prediction; of fewer, those alone are predicted.
    """
    # spherify(spherify(E(x)) + r_t sigma_max e), then D: method.md 1.3 and 2
    v = guided.prior.project(guided.to_latent(prediction))[: len(noise)]
    return guided.predict(guided.prior.perturb(v, noise, angle), angle)


def run(
    guided: GuidedModel,
    start: Tensor,
    angles: Sequence[float],
    noises: Iterable[Tensor],
    to_image: Callable[[Tensor], Tensor],
    *,
    made: bool = False,
    context: Context | None = None,
    before: Callable[[Tensor], Tensor] = same,
    after: Callable[[Tensor], Tensor] = same,
    until: Callable[[], bool] = lambda: False,
    callback: Callback | None = None,
) -> Samples:
    """Run the loop: from a prediction through a step for each angle.

    Args:
        guided: the generator under its condition.
        start: the prediction that the first noisy step goes from.
        angles, noises: radians and Gaussian noise of each noisy step.
        to_image: decodes predictions.
        made: the start is what step 1 made, with this `context`, and not given.
        before, after: what happens to the prediction on its way into and out of each noisy step, as in a restoration.
        until: asked after each step; where it is true the loop ends.
        callback: called after each step.
    """
    streams = streams_of(guided)
    count = len(start) // streams if made and len(angles) else len(start)
    prediction = start if made else torch.cat([start] * streams)
    predictions = [start[:count]] if made else []
    steps = len(angles) + len(predictions)
    if callback is not None and made:
        callback(1, steps, predictions[-1])
    for angle, noise in zip(angles, noises, strict=True):
        last = len(predictions) + 1 == steps  # which the first stream alone takes
        here = torch.cat([before(part) for part in prediction.split(count)])
        prediction, context = refine(guided, here, angle, noise[: len(noise) // streams] if last else noise)
        prediction = torch.cat([after(part) for part in prediction.split(count)])
        predictions.append(prediction[:count])
        if callback is not None:
            callback(len(predictions), steps, predictions[-1])
        if until():
            break
    context = None if context is None else context[slice(0, count)]
    return Samples(to_image(predictions[-1]), tuple(predictions), to_image, context)


def streams_of(guided: GuidedModel) -> int:
    """Return how many predictions a guidance follows from step to step."""
    return getattr(guided, "streams", 1)


@own_defaults()
@torch.no_grad()
def sample(
    model: SphereGenerator,
    noise: Tensor,
    labels: Labels = None,
    steps: int = 4,
    schedule: Schedule = "fixed",
    guidance: float | Guidance | None = None,
    guidance_at: str = "both",
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = True,
    strength: float = 1.0,
    start: Start = Start(),
    angle: float | None = None,
    loop_angle: float | None = None,
    callback: Callback | None = None,
) -> Samples:
    """Generate images: predict from random points on the sphere, then refine that steps-1 times.

    Args:
        model: any generator of the family.
        noise: Gaussian noise (B, N, d), or points on the sphere; spherified it is the starting point.
        labels: (B,) int64 class ids, (B, K+1) mixtures or a `Condition`; None is the null class of a conditional model.
        steps: T >= 1 predictions.
        schedule: `fixed` (r_t = 1), `decay` (r_t = 1 - t/T), `angle` (alpha_max * (1 - t/T)), T-1 fractions r_t of the
            magnitude tan(alpha_max), a function (t, T) -> r_t, or `Angles`.
        guidance: scale s, 1 for none, or degrees of a model that is guided by rotation, 0 for none; or a `Guidance` of
            your own; None: unguided.
        guidance_at: `pixel`, `latent` or `both` (sqrt(s) each); both is `latent` for a model that predicts latents.
        step_noise: noise of the steps after the first, one tensor for all or a list of T-1, of which what is left over
            is not used; under guidance by rotation a list of 2T-3 holds that of both its streams in turn. None: drawn,
            or that of the start where the model reuses it.
        generator: source of the drawn step noise, on the device of `noise` or the CPU.
        share_noise: draw one noise for all steps (the paper's best), else a fresh one for each.
        strength: a factor of the magnitude of the steps' noise.
        start: the points that noise stands for.
        angle: degrees that the model is told of the start, and by which steps turn; None: the model's own.
        loop_angle: degrees that the steps after the first start from instead.
        callback: called after each step with its number, T and the prediction.

    Raises:
        ConfigError: steps, schedule, guidance or noise that do not fit together.
    """
    angles = generation_angles(schedule, steps, largest_angle(model, angle, loop_angle), strength)
    if tuple(noise.shape[1:]) != tuple(model.latent_shape):
        shape = ", ".join(map(str, model.latent_shape))
        raise ConfigError(f"noise has shape {tuple(noise.shape)}; this model's latents are (B, {shape})")
    condition = model.condition(labels).check(len(noise))
    guided = guide(model, condition, guidance, guidance_at)
    if step_noise is None and share_noise and model.reuses_noise:
        step_noise = noise
    streams = streams_of(guided)
    noises = step_noises(step_noise, len(angles), noise, generator, share=share_noise, streams=streams)
    points, told = start.points(model, noise, condition)
    if angle is not None:
        told = math.radians(min(angle, model.max_angle))
    prediction, context = guided.predict(torch.cat([points] * streams) if angles else points, told)
    return run(guided, prediction, angles, noises, model.to_image, made=True, context=context, callback=callback)


def largest_angle(model: SphereGenerator, angle: float | None, loop_angle: float | None = None) -> float:
    """Return the degrees that a loop's schedule starts from: those of the loop, else of the start, else the model's.

    Raises:
        ConfigError: one lies outside 0 to 90 degrees.
    """
    for name, each in (("angle", angle), ("loop_angle", loop_angle)):
        if each is not None and not 0 <= each <= 90:
            raise ConfigError(f"{name} lies between 0 and 90 degrees, not {each:g}")
    given = angle if loop_angle is None else loop_angle
    return model.alpha_max if given is None else min(given, model.max_angle)


@own_defaults()
@torch.no_grad()
def decode(model: SphereGenerator, v: Tensor, labels: Labels = None, angle: float = 0.0) -> Samples:
    """Decode points (B, N, d), moved by noise of `angle` radians, without a loop behind it."""
    prediction, context = guide(model, labels).predict(v, angle)
    return Samples(model.to_image(prediction), (prediction,), model.to_image, context)


@own_defaults()
@torch.no_grad()
def reconstruct(
    model: SphereGenerator, images: Tensor, labels: Labels = None, angle: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Return images (B, C, S, S) in [-1, 1] there and back, D(spherify(E(x))). `labels=None`: the null class.

    Args:
        model: any generator of the family.
        images: in [-1, 1].
        labels: or the condition.
        angle: degrees by which noise moves the points in between; a model that is told it is told.
        noise: (B, N, d) Gaussian, for an angle that is not 0; drawn where None.
    """
    condition, radians = model.condition(labels), math.radians(largest_angle(model, angle))
    v = model.encode(images, condition)
    if radians:
        v = model.prior.perturb(v, draw_noise(v, None) if noise is None else noise, radians)
    return decode(model, v, condition, radians).images


def step_noises(
    given: StepNoise | None,
    count: int,
    like: Tensor,
    generator: torch.Generator | None = None,
    *,
    share: bool = True,
    streams: int = 1,
) -> Iterable[Tensor]:
    """Return the noise of `count` steps: what is given, checked; else one draw for all, or one for each.

    Args:
        given: one tensor for all steps, or one for each and perhaps more, of each stream in turn where there are as
            many: those of the other streams in the last step are left out.
        count: steps.
        like: has their shape, type and device.
        generator: of what is drawn.
        share: draw one noise for all steps.
        streams: predictions that a guidance follows; the noises are those of all, one stream behind the other.

    Raises:
        ConfigError: fewer noises, or of another shape than `like`.
    """
    of_streams = streams * (count - 1) + 1 if count else 0
    if given is None:
        if share:
            return [torch.cat([draw_noise(like, generator)] * streams)] * count if count else []
        return (torch.cat([draw_noise(like, generator) for _ in range(streams)]) for _ in range(count))
    noises = [given] * max(count, 1) if isinstance(given, Tensor) else given
    if not isinstance(given, Tensor) and len(noises) < count:
        raise ConfigError(f"{len(noises)} step noises for {count} noisy steps; give one for each, or one tensor")
    for noise in noises:
        if noise.shape != like.shape:
            raise ConfigError(f"step_noise has shape {tuple(noise.shape)} instead of {tuple(like.shape)}")
    if streams == 1:
        return noises[:count]
    if isinstance(given, Tensor) or len(noises) < of_streams:
        return [torch.cat([noise] * streams) for noise in noises[:count]]
    filled = [*noises[:of_streams], *[noises[of_streams - 1]] * (streams - 1)] if count else []
    return [torch.cat(list(filled[step : step + streams])) for step in range(0, streams * count, streams)]


def draw_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw Gaussian noise of the shape, type and device of a tensor, on the device of the generator."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device, like.dtype)
