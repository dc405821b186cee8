"""Restoring images with the sphere as a prior: one model, any known degradation.

Given y = A(x) + noise, alternate a prior step, one noisy encode and decode, and a data step in closed form that moves
the image towards agreement with y. No gradients; the image is usable after every step.

    v = project(E(x)),  v = perturb(v, e, angle),  x_prior = D(v),  x = argmin |A x - y|^2 + lambda |x - x_prior|^2

Source: SP3 (arXiv 2606.16396); method.md, section 5. The spectrum of the prior's error is ours. Legend: T steps, B
samples, images (B, C, H, W) in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from spheregen.conditioning import Labels
from spheregen.devices import own_defaults
from spheregen.errors import ConfigError
from spheregen.protocol import SphereGenerator
from spheregen.sampling.loop import Callback, Guidance, Samples, StepNoise, guide, run, step_noises, streams_of
from spheregen.sampling.restoration.estimates import Spectrum, gain_of
from spheregen.sampling.restoration.operators import Lam, Linear, Operator, check_adjoint
from spheregen.sampling.restoration.pixels import Mask
from spheregen.sampling.restoration.tiles import TiledModel
from spheregen.sampling.schedules import Schedule, edit_angles
from spheregen.sphere import per_sample, upcast

STEPS, ANGLE, SCHEDULE = 20, 30.0, "decay"
"""Of models that nothing was recorded for: the full setting of SP3, and noise that small models bear."""
DISCREPANCY = 0.95
"""Of pipelines: within a tenth of the noise, and on the side of y, which sees more than a small model does."""
WEIGHTS = (1e-8, 1e4)
"""Of the prior, between which that of a discrepancy is looked for: y alone, and the prior's image alone."""
TRIED, HALVINGS = 13, 7
"""Weights that are tried first, and halvings of the range between two of them: to two percent of a weight."""
WHITE_SCALE = 10.0
"""c of lambda = c s^2 where the prior's error is thought to be white: that of a deviation of 0.3."""


def image_shape_of(operator: Operator, y: Tensor) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images that observations y are of.

    Raises:
        ConfigError: y is no observation of this operator.
    """
    kind = type(operator).__name__
    if y.ndim < 2 or not len(y):
        raise ConfigError(f"observations have a batch axis first, not shape {tuple(y.shape)}")
    try:
        shape = tuple((operator.A_adjoint(y) if operator.linear else y).shape[1:])
        seen = tuple(operator.A(torch.zeros(1, *shape, device=y.device, dtype=y.real.dtype)).shape[1:])
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(f"y of shape {tuple(y.shape)} is no observation of {kind}: {error}") from error
    if len(shape) != 3 or seen != tuple(y.shape[1:]):
        raise ConfigError(f"y of shape {tuple(y.shape)} is no observation of {kind}, which gives (B, {seen})")
    return shape


@own_defaults()
@torch.no_grad()
def restore(
    model: SphereGenerator,
    y: Tensor,
    operator: Operator,
    labels: Labels = None,
    steps: int = STEPS,
    angle: float = ANGLE,
    schedule: Schedule = SCHEDULE,
    noise: Lam = 0.0,
    lam: Lam | None = None,
    scale: float | None = None,
    spectrum: Spectrum | None = None,
    start: Tensor | None = None,
    stop: float | None = None,
    discrepancy: float | None = None,
    guidance: float | Guidance | None = None,
    guidance_at: str = "both",
    step_noise: StepNoise | None = None,
    generator: torch.Generator | None = None,
    share_noise: bool = False,
    callback: Callback | None = None,
) -> Samples:
    """Restore images from y = A(x) + noise.

    A model that predicts latents decodes and encodes around each data step, except where pixels are missing and the
    others known without noise: there the data step is on tokens, known ones are put back, and the image is decoded
    once.
    Images larger than the model's go through it in tiles that overlap (`TiledModel`), with a data step on the whole.

    Args:
        model: any generator of the family.
        y: observations, as `operator.A` gives them of images in [-1, 1].
        operator: the degradation, see `spheregen.restoration`.
        labels: class ids, mixtures or a condition; None is the null class.
        steps: T >= 1 prior and data steps; the trajectory has T images.
        angle: degrees of the noise of the prior's steps; 0 is none.
        schedule: of these angles: `decay` or another of `edit`, from `angle` down, or `fixed`.
        noise: s, the deviation of the noise in y, one number or (B,); 0: y is exact.
        lam: weight of the prior against y; None: scale * s^2.
        scale: c of lam = c s^2; None: 1 with a spectrum, else 10. Of roundings (`Quantise`, `Jpeg`), `lam` itself.
        spectrum: of the prior's error, see `measure_spectrum`; None: it is white, as in the paper.
        start: first images; None: the operator's `init`.
        stop: hold an image once that of the prior agrees with y up to this many times the noise; None: never.
        discrepancy: end with the weight of each image by which its residual is this many times its noise, where there
            is one (the discrepancy principle, Morozov 1966), instead of `lam`; None, no noise and roundings: as `lam`
            says.
        guidance, guidance_at: as in `sample`.
        step_noise: Gaussian noise of the prior's steps, (B, N, d) for all or a list of T; of tiles (B n, N, d).
        generator: source of the noise that is drawn.
        share_noise: draw one noise for all steps instead of a fresh one for each.
        callback: called after each step with its number, T and the images.

    Raises:
        ConfigError: arguments that do not fit together, such as y that is no observation of the operator.
    """
    _check(angle, noise, stop, scale, discrepancy)
    y, start = upcast(y), None if start is None else upcast(start)  # there is no Fourier transform in bf16
    angles = edit_angles(schedule, steps, 1.0, min(angle, model.max_angle))
    shape = image_shape_of(operator, y)
    if isinstance(operator, Linear):
        check_adjoint(operator, shape)
    if shape[0] != model.image_shape[0]:
        raise ConfigError(f"y is of images of {shape[0]} channels, and the model's have {model.image_shape[0]}")
    begin = operator.init(y) if start is None else start
    if tuple(begin.shape) != (len(y), *shape):
        raise ConfigError(f"start has shape {tuple(begin.shape)} instead of {(len(y), *shape)}")
    condition = model.condition(labels).check(len(y))
    size, tiled = (shape[1], shape[2]), tuple(shape) != tuple(model.image_shape)
    guided = guide(model, condition, guidance, guidance_at)
    guide_tiles = functools.partial(guide, guidance=guidance, place=guidance_at)
    tiles = TiledModel(model, condition, guide_tiles, size) if tiled else None
    deviation = torch.as_tensor(noise, device=y.device, dtype=begin.dtype)
    gain = None if spectrum is None else gain_of(spectrum, size, begin)
    weight = _weight(operator, deviation, lam, scale, gain)
    count = len(y) * (1 if tiles is None else len(tiles.places))
    noises = step_noises(
        step_noise,
        steps,
        begin.new_empty((count, *model.latent_shape)),
        generator,
        share=share_noise,
        streams=streams_of(guided),
    )

    def bounded(images: Tensor) -> Tensor:
        return operator.bounded(images, y)

    wanted = None if discrepancy is None or not operator.linear else discrepancy * deviation.expand(len(y))
    last = _LastStep(operator, y, weight, gain, wanted)

    def agree(images: Tensor) -> Tensor:
        return bounded(last(images))

    exact = isinstance(operator, Mask) and not bool(weight.any())
    if exact and tiles is None and not model.predicts_images and stop is None:
        known = model.from_image(begin.clamp(-1, 1))
        missing = (1 - operator.known.amax(1, keepdim=True)).to(begin.dtype)  # type: ignore[attr-defined]
        after: Callable[[Tensor], Tensor] = functools.partial(model.mix, second=known, mask=missing)

        def decoded(prediction: Tensor) -> Tensor:
            return agree(model.to_image(prediction))

        samples = run(guided, known, angles, noises, decoded, after=after, callback=_of_images(callback, decoded))
        return dataclasses.replace(samples, agree=agree)
    step = _DataStep(last, streams_of(guided), steps)
    if stop is not None:
        step.hold(begin, stop * deviation)
    if tiles is not None:
        samples = run(
            tiles, begin, angles, noises, bounded, after=step, until=step.done, callback=_of_images(callback, bounded)
        )
    else:
        samples = run(
            guided,
            begin,
            angles,
            noises,
            bounded,
            before=model.from_image,
            after=lambda prediction: step(model.to_image(prediction)),
            until=step.done,
            callback=_of_images(callback, bounded),
        )
    return dataclasses.replace(samples, agree=agree)


def _check(angle: float, noise: Lam, stop: float | None, scale: float | None, discrepancy: float | None) -> None:
    if not 0 <= angle <= 90:
        raise ConfigError(f"angle lies between 0 and 90 degrees, not {angle:g}")
    each = torch.as_tensor(noise)
    if not bool((each.isfinite() & (each >= 0)).all()):
        raise ConfigError(f"noise is a deviation from 0 up, not {noise}")
    if scale is not None and not 0 <= scale < math.inf:
        raise ConfigError(f"scale is trust in the model from 0 up, not {scale:g}")
    if stop is not None and not 0 < stop < math.inf:
        raise ConfigError(f"stop is a factor of the noise above 0, not {stop:g}")
    if discrepancy is not None and not 0 < discrepancy < math.inf:
        raise ConfigError(f"discrepancy is a factor of the noise above 0, not {discrepancy:g}")
    if stop is not None and not bool((each > 0).all()):
        raise ConfigError("stop is a factor of the noise; give noise with it")


def _weight(operator: Operator, deviation: Tensor, lam: Lam | None, scale: float | None, gain: Tensor | None) -> Tensor:
    if lam is not None:
        return torch.as_tensor(lam, device=deviation.device, dtype=deviation.dtype)
    factor = (WHITE_SCALE if gain is None else 1.0) if scale is None else scale
    variance = deviation.square() if operator.linear else torch.ones_like(deviation)
    return (factor * variance).clamp_min(operator.least_lambda)


def _of_images(callback: Callback | None, to_image: Callable[[Tensor], Tensor]) -> Callback | None:
    return None if callback is None else lambda step, steps, made: callback(step, steps, to_image(made))


class _LastStep:
    """The data step of results: without a shortcut, and of the residual that is wanted of each image."""

    def __init__(
        self, operator: Operator, y: Tensor, weight: Tensor, gain: Tensor | None, wanted: Tensor | None
    ) -> None:
        self.operator, self.y, self.weight, self.gain = operator, y, weight, gain
        self.wanted = None if wanted is None or not bool((wanted > 0).any()) else wanted

    def __call__(self, images: Tensor) -> Tensor:
        operator, y, gain = self.operator, self.y, self.gain
        weight = self.weight if self.wanted is None else self._matching(images, self.wanted)
        return operator.last_step(images, y, weight, gain)

    def _matching(self, images: Tensor, wanted: Tensor) -> Tensor:
        """Return the weights (B,) of the prior: the largest by which the residual, of images in range, is as wanted.

        Where that of the prior's own image is smaller, it is that image; where none is so small, the nearest to y. A
        residual need not grow with the weight, since a small one may throw a result out of its range.
        """
        operator, y = self.operator, self.y

        def apart(logarithm: Tensor) -> Tensor:
            weight = logarithm.exp().clamp_min(operator.least_lambda)  # not below it by rounding
            x = operator.last_step(images, y, weight, self.gain)
            return operator.residual(operator.bounded(x, y), y)

        least, most = (math.log(max(end, operator.least_lambda)) for end in WEIGHTS)
        ends = torch.linspace(most, least, TRIED, dtype=wanted.dtype, device=wanted.device)
        each = torch.stack([apart(end.expand_as(wanted)) for end in ends])
        near = each <= wanted
        place = torch.where(near.any(0), near.int().argmax(0), each.argmin(0))
        low, high = ends[place], ends[(place - 1).clamp_min(0)]
        high = torch.where(near.any(0), high, low)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            far = apart(middle) > wanted
            low, high = torch.where(far, low, middle), torch.where(far, middle, high)
        return torch.where(wanted > 0, low.exp().clamp_min(operator.least_lambda), self.weight.to(low.dtype))


class _DataStep:
    """The data step of one loop: behind the last prior step that of results, and not for images that are held."""

    def __init__(self, last: _LastStep, streams: int, steps: int) -> None:
        self.last = last
        self.calls_left = streams * (steps - 1) + 1
        self.streams = streams
        self.held: Tensor | None = None

    def hold(self, start: Tensor, most: Tensor) -> None:
        """Hold each image from the step on at which the prior's image agrees with y up to a deviation."""
        if self.streams > 1:
            raise ConfigError(
                "stop does not go with a guidance that follows several predictions; leave one of them out"
            )
        self.held, self.most = start, most
        self.going = torch.ones(len(start), dtype=torch.bool, device=start.device)

    def done(self) -> bool:
        """All images are held."""
        return self.held is not None and not bool(self.going.any())

    def __call__(self, images: Tensor) -> Tensor:
        self.calls_left -= 1
        last = self.last
        if self.held is None and self.calls_left:
            return last.operator.step(images, last.y, last.weight, last.gain)
        found = last(images)  # behind every step where images may be held
        if self.held is None:
            return found
        apart = last.operator.residual(images, last.y)
        self.held = torch.where(per_sample(self.going, found), found, self.held)
        self.going = self.going & (apart > self.most)
        return self.held
