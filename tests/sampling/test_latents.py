"""Models that predict latents: the same loops, decoded once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.restoration import BlockMean, Mask
from spheregen.sampling import (
    GuidedModel,
    Joined,
    crossover_mask,
    edit,
    guide,
    refine,
    restore,
    sample,
)
from spheregen.sphere import spherify
from tests.sampling.latent_generator import LatentGenerator, latent_generator
from tests.sampling.test_sampling import IMAGES, LABELS, NOISE, STEP, gaussian, sizes_of

LEFT = crossover_mask("left-right", 8)
"""1 in the left half, the tokens 0 and 2."""


@pytest.fixture(scope="module")
def model() -> LatentGenerator:
    return latent_generator()


@pytest.fixture(scope="module")
def identity() -> LatentGenerator:
    """Its denoiser gives points back as they are."""
    return latent_generator(identity=True)


def noisy(guided: GuidedModel, prediction: Tensor, fraction: float) -> Tensor:
    """A step by noise of a fraction of the training noise's magnitude."""
    return refine(guided, prediction, math.atan(fraction * math.tan(math.radians(80))), STEP)[0]


@contextmanager
def counted(model: LatentGenerator) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """The batch sizes of all calls of the denoiser, the encoder and the decoder."""
    networks = (model.denoiser, model.tokenizer.encoder, model.tokenizer.decoder)
    counts, hooks = zip(*(sizes_of(network) for network in networks), strict=True)
    yield counts
    for hook in hooks:
        hook.remove()


ANGLE = math.degrees(math.atan(0.4 * math.tan(math.radians(80))))
"""Of 0.4 of the training noise's magnitude."""


def on_sphere(model: LatentGenerator) -> Tensor:
    """Images whose latents lie on the sphere, so that nothing is lost on the way there."""
    images = model.tokenizer.decode(spherify(gaussian(3, 4, 4, seed=8)))
    assert images.abs().max() < 1
    return images


# what is computed -----------------------------------------------------------------------------------------------------


def test_inpainting_encodes_and_decodes_once_an_enlargement_at_each_step(model: LatentGenerator) -> None:
    with counted(model) as calls:
        restore(model, IMAGES, Mask(1 - LEFT), LABELS, steps=3, step_noise=STEP)
    assert calls == ([3] * 3, [3], [3])
    with counted(model) as calls:
        result = restore(model, IMAGES[..., ::2, ::2], BlockMean(2), LABELS, steps=3, step_noise=STEP)
        assert len(result.trajectory) == 3
    assert calls == ([3] * 3, [3] * 3, [3] * 3)


# the loop by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["sphere", "gaussian"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.2])
@torch.no_grad()
def test_sampling_by_hand(scale: float, prior: Any) -> None:
    """Every picture alone, condition and null class in separate calls; the noise decays."""
    model, steps = latent_generator(prior=prior), 3
    expected = []
    for i in range(3):
        label, null, e = LABELS[i : i + 1], torch.tensor([3]), STEP[i : i + 1]

        def denoise(v: Tensor, label: Tensor = label, null: Tensor = null) -> Tensor:
            conditional, free = model.predict(v, label), model.predict(v, null)
            return free + scale * (conditional - free)

        z = denoise(spherify(NOISE[i : i + 1]) if prior == "sphere" else NOISE[i : i + 1])
        for t in range(1, steps):
            sigma = (1 - t / steps) * math.tan(math.radians(80))
            z = denoise(
                spherify(spherify(z) + sigma * e) if prior == "sphere" else (z + sigma * e) / math.hypot(1, sigma)
            )
        expected.append(model.tokenizer.decode(z))
    result = sample(model, NOISE, LABELS, steps, "decay", guidance=scale, step_noise=STEP)
    torch.testing.assert_close(result.images, torch.cat(expected), atol=1e-5, rtol=0)


# where a model can be guided ------------------------------------------------------------------------------------------


# masks ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_crossover_takes_tokens_of_each_image(identity: LatentGenerator) -> None:
    a = on_sphere(identity)
    b = a.flip(0)
    mixed = identity.tokenizer.encode(a).clone()
    mixed[:, 1::2] = identity.tokenizer.encode(b)[:, 1::2]
    expected = identity.tokenizer.decode(spherify(mixed))
    result = edit(identity, Joined(a, b, LEFT), steps=1, strength=0.0)
    torch.testing.assert_close(result.images, expected, atol=1e-5, rtol=0)
    swapped = edit(identity, Joined(b, a, 1 - LEFT), steps=1, strength=0.0)
    torch.testing.assert_close(swapped.images, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_known_tokens_are_put_back_at_every_step(model: LatentGenerator) -> None:
    operator = Mask(1 - LEFT)
    known = model.tokenizer.encode(operator.init(IMAGES).clamp(-1, 1))
    result = restore(model, IMAGES, operator, LABELS, steps=3, angle=ANGLE, schedule="decay", step_noise=STEP)
    guided, z = guide(model, LABELS), known
    for t, (prediction, images) in enumerate(zip(result.predictions, result.trajectory, strict=True), 1):
        refined = noisy(guided, z, 0.4 * (1 - t / 4))  # decays by default
        z = torch.stack([refined[:, 0], known[:, 1], refined[:, 2], known[:, 3]], dim=1)
        torch.testing.assert_close(prediction, z, atol=1e-6, rtol=0)
        decoded = model.tokenizer.decode(prediction)
        assert torch.equal(images[..., 4:], IMAGES[..., 4:])  # known pixels are exact
        torch.testing.assert_close(images[..., :4], decoded[..., :4].clamp(-1, 1))


@torch.no_grad()
def test_an_enlargement_agrees_in_pixels_at_each_step(model: LatentGenerator) -> None:
    operator, y = BlockMean(2), 0.3 * torch.nn.functional.avg_pool2d(IMAGES, 2)
    result = restore(model, y, operator, LABELS, steps=3, angle=ANGLE, schedule="decay", step_noise=STEP)
    guided, x = guide(model, LABELS), operator.init(y)
    for t, images in enumerate(result.trajectory, 1):
        prediction = noisy(guided, model.tokenizer.encode(x), 0.4 * (1 - t / 4))
        x = operator.prox(model.tokenizer.decode(prediction), y, 0)
        torch.testing.assert_close(images, operator.bounded(x, y), atol=1e-6, rtol=0)
