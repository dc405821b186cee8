"""Changing images through the sphere: masks, stitched pictures, variations at an angle, edits towards a class."""

from __future__ import annotations

import pytest
import torch

from spheregen.conditioning import Condition
from spheregen.protocol import SphereGenerator
from spheregen.sampling import (
    Guided,
    GuidedModel,
    edit,
    vary,
)
from spheregen.sphere import angle_between, spherify
from tests.sampling.test_sampling import IMAGES, LABELS, STEP, gaussian

# masks ----------------------------------------------------------------------------------------------------------------


# vary -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0, 0.1, 1, 30, 90, 150, 179.9, 180])
def test_a_variation_is_exactly_at_its_angle_on_the_sphere(angle: float) -> None:
    v = spherify(gaussian(5, 16, 8))
    varied = vary(v, gaussian(5, 16, 8, seed=1), angle)
    assert (angle_between(v, varied) - angle).abs().max() < 1e-3
    torch.testing.assert_close(varied.flatten(1).norm(dim=1), v.flatten(1).norm(dim=1), rtol=1e-5, atol=0)


# edit -----------------------------------------------------------------------------------------------------------------


class Backwards:
    """A guidance of a researcher's own: away from the class, and it remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[SphereGenerator, Condition]] = []

    def __call__(self, model: SphereGenerator, condition: Condition) -> GuidedModel:
        self.calls.append((model, condition))
        assert condition.index is not None
        return Guided(model, model.condition(2 - condition.index))


@torch.no_grad()
def test_a_guidance_of_your_own_takes_the_place_of_a_scale(either: SphereGenerator) -> None:
    guidance = Backwards()
    result = edit(either, IMAGES, LABELS, steps=2, guidance=guidance, step_noise=STEP)
    assert len(guidance.calls) == 1  # not once a step
    assert guidance.calls[0][0] is either
    assert torch.equal(result.images, edit(either, IMAGES, 2 - LABELS, steps=2, step_noise=STEP).images)
    assert not torch.allclose(result.images, edit(either, IMAGES, LABELS, steps=2, step_noise=STEP).images, atol=1e-3)
    # the place of a scale says nothing to it
    assert torch.equal(
        result.images, edit(either, IMAGES, LABELS, 2, guidance=guidance, guidance_at="pixel", step_noise=STEP).images
    )
