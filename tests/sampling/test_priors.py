"""Sampling, editing and pipelines ask the model for its prior: by hand for a Gaussian one, unchanged for the sphere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import spheregen as sg
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.folders.model_folder import ModelInfo
from spheregen.prior import GAUSSIAN
from spheregen.restoration import Mask
from spheregen.sampling import edit, interpolate, lerp, reconstruct, restore
from spheregen.sphere import slerp, spherify
from tests.sampling.test_sampling import IMAGES, LABELS, SIGMA, STEP, gaussian, model_of


@pytest.fixture(scope="module")
def model() -> SphereAutoencoder:
    return model_of(prior="gaussian")


def refined(model: SphereAutoencoder, x: Tensor, radius: float) -> Tensor:
    sigma = radius * SIGMA
    return model.decode((model.encode_raw(x, LABELS) + sigma * STEP) / (1 + sigma**2) ** 0.5, LABELS)


@torch.no_grad()
def test_edits_and_restorations_stay_in_the_prior(model: SphereAutoencoder) -> None:
    x = IMAGES
    for images in edit(model, IMAGES, LABELS, steps=2, step_noise=STEP).trajectory:
        x = refined(model, x, 0.25)
        torch.testing.assert_close(images, x, atol=2e-5, rtol=0)
    known = torch.ones(1, 1, 8, 8)
    known[..., :4] = 0
    operator, angle = Mask(known), math.degrees(math.atan(0.4 * SIGMA))
    result = restore(model, IMAGES, operator, LABELS, steps=1, angle=angle, schedule="fixed", step_noise=STEP)
    expected = operator.prox(refined(model, operator.init(IMAGES), 0.4), IMAGES, 0).clamp(-1, 1)
    torch.testing.assert_close(result.images, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(reconstruct(model, IMAGES), model.decode(model.encode_raw(IMAGES)))


def test_straight_lines_stay_straight() -> None:
    ends = gaussian(2, 4, 4)
    t = torch.linspace(0, 1, 5)[:, None, None]
    straight = interpolate(ends, 5, "lerp", prior=GAUSSIAN)
    torch.testing.assert_close(straight, (1 - t) * ends[0] + t * ends[1])
    assert torch.equal(straight[0], ends[0]) and torch.equal(straight[-1], ends[1])
    assert torch.equal(interpolate(ends, 5, prior=GAUSSIAN), interpolate(ends, 5))  # the great circle needs no prior
    v = spherify(ends)
    middle = lerp(v[:1], v[1:], 0.5)
    torch.testing.assert_close(middle, slerp(v[:1], v[1:], 0.5), atol=1e-5, rtol=1e-5)


def test_a_pipeline_takes_latents_as_its_prior_does() -> None:
    pipe = sg.Pipeline(model_of(0, prior="gaussian"), ModelInfo(sampling={"steps": 2}), device="cpu")
    photos = IMAGES / 2 + 0.5
    points = pipe.encode(photos)
    with torch.no_grad():
        torch.testing.assert_close(points, pipe.model.encode_raw(IMAGES), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pipe.decode(2 * points), (pipe.model.decode(2 * points) + 1) / 2)
    assert not torch.allclose(pipe.decode(2 * points), pipe.decode(points), atol=1e-3)
    generated = pipe.generate(seeds=[4, 9], steps=1).tensor
    way = pipe.interpolate([4, 9], 3, path="lerp").tensor
    torch.testing.assert_close(way[[0, 2]], generated, atol=1e-5, rtol=0)  # a seed's end is what generate makes
    noise = sg.sampling.seeded_noise([4, 9], pipe.model.latent_shape, 0).initial
    torch.testing.assert_close(pipe.decode(noise), generated, atol=1e-5, rtol=0)
    torch.testing.assert_close(way[1:2], pipe.decode(noise.mean(0, keepdim=True)), atol=1e-5, rtol=0)
    varied = pipe.vary(photos[:1], 2, angle=0).tensor
    torch.testing.assert_close(varied[:1], pipe.reconstruct(photos[:1]), atol=1e-5, rtol=0)
