"""Restoration: what is known stays, the rest is the nearest that agrees with it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spheregen.conditioning import Condition
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.prior import Angle
from spheregen.protocol import Context, SphereGenerator
from spheregen.sampling import Guided, GuidedModel, Masked, Observation, Reduced, guide, refine, restore
from tests.sampling.test_sampling import IMAGES, LABELS, SIGMA, STEP, gaussian

MASK = (torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(3)) < 0.5).float()
EACH = (torch.rand((3, 1, 8, 8), generator=torch.Generator().manual_seed(4)) < 0.5).float()
SOFT = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(5)).where(MASK == 1, torch.zeros(()))
MASKS = {"one": MASK, "each": EACH, "none": torch.zeros(1, 1, 8, 8), "all": torch.ones(1, 1, 8, 8)}
TYPES = [torch.float32, torch.float64, torch.bfloat16]


def small_of(images: Tensor, factor: int) -> Tensor:
    return functional.avg_pool2d(images, factor)


# what is known --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mask", [*MASKS.values(), SOFT], ids=[*MASKS, "soft"])
def test_known_pixels_are_kept_bit_for_bit(mask: Tensor, dtype: torch.dtype) -> None:
    images = IMAGES.to(dtype)
    observation = Masked(images, mask)
    known = (mask == 0).expand_as(images)
    other = gaussian(3, 3, 8, 8, seed=6).to(dtype)
    for result in (observation.start(), observation.agree(other)):
        assert result.shape == images.shape and result.dtype == dtype
        assert result.isfinite().all()
        assert torch.equal(result[known], images[known])
    missing = (mask == 1).expand_as(images)
    assert torch.equal(observation.agree(other)[missing], other[missing])


@pytest.mark.parametrize("mask", [MASK, EACH], ids=["one", "each"])
def test_inpainting_starts_from_what_is_known_around(mask: Tensor) -> None:
    hidden = IMAGES.where(mask == 0, torch.full((), 0.7))
    start = Masked(hidden, mask).start()
    assert torch.equal(start, Masked(IMAGES, mask).start())  # what the missing region holds does not matter
    known = (mask == 0).expand_as(IMAGES)
    assert torch.equal(start[known], IMAGES[known])
    for i, channel in itertools.product(range(3), range(3)):
        around = IMAGES[i, channel][known[i, channel]]
        filled = start[i, channel][~known[i, channel]]
        assert around.min() - 1e-5 <= filled.min() and filled.max() <= around.max() + 1e-5
    even = torch.full_like(IMAGES, 0.3)
    torch.testing.assert_close(Masked(even, mask).start(), even, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", TYPES[:2])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_averages_are_kept(factor: int, dtype: torch.dtype) -> None:
    small = small_of(IMAGES, factor).to(dtype)
    observation = Reduced(small, factor)
    for result in (observation.start(), observation.agree(gaussian(3, 3, 8, 8, seed=6).to(dtype))):
        assert result.shape == IMAGES.shape and result.dtype == dtype
        assert (small_of(result, factor) - small).abs().max() < 1e-5
    if factor == 1:
        torch.testing.assert_close(observation.start(), small)


OBSERVATIONS: dict[str, Observation] = {
    **{f"masked {name}": Masked(IMAGES.double(), mask.double()) for name, mask in MASKS.items()},
    **{f"reduced {factor}": Reduced(small_of(IMAGES.double(), factor), factor) for factor in (1, 2, 8)},
}


def start_of(observation: Observation) -> Tensor:
    """A first guess that is well inside [-1, 1]."""
    return observation.start() * 0.5


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_agree_is_the_nearest_that_agrees(name: str) -> None:
    """An orthogonal projection of images that stay in [-1, 1]: idempotent, and the change is at right angles to all
    that stays free."""
    observation = OBSERVATIONS[name]
    x, y = (start_of(observation) + 0.05 * gaussian(3, 3, 8, 8, seed=seed).double().clamp(-4, 4) for seed in (6, 7))
    agreed, other = observation.agree(x), observation.agree(y)
    torch.testing.assert_close(observation.agree(agreed), agreed, atol=1e-12, rtol=0)
    torch.testing.assert_close(observation.agree(observation.start()), observation.start(), atol=1e-12, rtol=0)
    inner = ((x - agreed) * (other - agreed)).sum((1, 2, 3))
    assert inner.abs().max() < 1e-9
    assert ((x - agreed).norm() <= (x - other).norm() + 1e-12).all()
    middle = observation.agree((x + y) / 2)
    torch.testing.assert_close(middle, (agreed + other) / 2, atol=1e-12, rtol=0)  # affine


# the loop -------------------------------------------------------------------------------------------------------------


class Dimmed(Guided):
    """Dims what is predicted, so that no data step leaves the range and is clamped."""

    def predict(self, v: Tensor, angle: Angle) -> tuple[Tensor, Context | None]:
        prediction, context = super().predict(v, angle)
        return 0.2 * prediction, context


def dim(model: SphereGenerator, condition: Condition) -> GuidedModel:
    return Dimmed(model, condition)


@torch.no_grad()
def test_a_step_is_a_refinement_and_agreement(model: SphereAutoencoder) -> None:
    observation = Masked(IMAGES, MASK)
    guided, x = guide(model, LABELS, 1.5), observation.start()
    result = restore(model, observation, LABELS, steps=3, strength=0.4, guidance=1.5, step_noise=STEP)
    for t, images in enumerate(result.trajectory, 1):
        angle = math.atan(0.4 * (1 - t / 4) * SIGMA)  # decays by default
        x = observation.agree(refine(guided, x.clamp(-1, 1), angle, STEP)[0])
        torch.testing.assert_close(images, x.clamp(-1, 1), atol=2e-5, rtol=0)


@dataclass(frozen=True)
class KnownMean:
    """An observation of a researcher's own: only the mean of each channel is known."""

    mean: Tensor
    size: int

    def start(self) -> Tensor:
        return self.mean[..., None, None].expand(*self.mean.shape, self.size, self.size)

    def agree(self, images: Tensor) -> Tensor:
        return images + (self.mean - images.mean((-2, -1)))[..., None, None]


def test_an_observation_of_your_own(either: SphereGenerator) -> None:
    observation = KnownMean(0.1 * IMAGES.mean((-2, -1)), 8)
    result = restore(either, observation, LABELS, steps=3, guidance=dim, step_noise=STEP)
    for images in result.trajectory:
        assert (images.mean((-2, -1)) - observation.mean).abs().max() < 1e-5
    whole = Reduced(observation.mean[..., None, None], 8)  # the same by another name
    same = restore(either, whole, LABELS, steps=3, guidance=dim, step_noise=STEP)
    torch.testing.assert_close(result.images, same.images, atol=1e-4, rtol=0)
