"""Changing images through the sphere: masks, stitched pictures, variations at an angle, edits towards a class."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from spheregen.conditioning import Condition
from spheregen.errors import ConfigError
from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.protocol import SphereGenerator, mix_images
from spheregen.sampling import (
    MASKS,
    Guided,
    GuidedModel,
    Joined,
    crossover_mask,
    edit,
    refine,
    vary,
)
from spheregen.sphere import angle_between, spherify
from tests.sampling.test_sampling import IMAGES, KINDS, LABELS, SIGMA, STEP, gaussian, model_of

SIZES = [1, 2, 5, 8, 9]
DIAGONALS = ("diagonal", "antidiagonal")


@pytest.fixture(scope="module")
def model() -> SphereAutoencoder:
    return model_of()


@pytest.fixture(scope="module", params=KINDS)
def either(request: pytest.FixtureRequest) -> SphereGenerator:
    return KINDS[request.param](3)


# masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_halves_and_the_middle_line_of_odd_sizes(size: int) -> None:
    left, top = crossover_mask("left-right", size)[0, 0], crossover_mask("top-bottom", size)[0, 0]
    assert (left[:, : size // 2] == 1).all() and (left[:, size // 2 :] == 0).all()
    assert torch.equal(top, left.T) and left.dtype == torch.float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DIAGONALS)
def test_a_diagonal_is_half_the_picture_and_mixed_where_it_runs(name: str, size: int) -> None:
    mask = crossover_mask(name, size)[0, 0]
    for row in range(size):
        for column in range(size):
            # above the diagonal from the upper left, or above the one from the lower left
            side = column - row if name == "diagonal" else size - 1 - row - column
            assert mask[row, column] == (1 if side > 0 else 0 if side < 0 else 0.5)
    assert mask.mean() == 0.5
    assert (mask == 0.5).sum() == size


@pytest.mark.parametrize("name", ["left-rigth", ""])
def test_an_unknown_mask_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="left-right"):
        crossover_mask(name, 8)


# vary -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0, 0.1, 1, 30, 90, 150, 179.9, 180])
def test_a_variation_is_exactly_at_its_angle_on_the_sphere(angle: float) -> None:
    v = spherify(gaussian(5, 16, 8))
    varied = vary(v, gaussian(5, 16, 8, seed=1), angle)
    assert (angle_between(v, varied) - angle).abs().max() < 1e-3
    torch.testing.assert_close(varied.flatten(1).norm(dim=1), v.flatten(1).norm(dim=1), rtol=1e-5, atol=0)


def test_variations_go_where_their_noise_points() -> None:
    v, noise = spherify(gaussian(3, 16, 8)), gaussian(3, 16, 8, seed=1)
    assert torch.equal(vary(v, noise, 0), v)
    near, far = vary(v, noise, 20.0), vary(v, noise, 50.0)
    # one great circle
    torch.testing.assert_close(angle_between(near, far), torch.full((3,), 30.0), atol=1e-3, rtol=0)
    assert (angle_between(near, vary(v, -noise, 20.0)) - 40).abs().max() < 1e-3
    assert (angle_between(near[:1], vary(v[:1], noise[1:2], 20.0)) > 5).all()


@pytest.mark.parametrize("angle", [-1, 180.5, 200, math.nan, math.inf])
def test_impossible_angles_are_refused(angle: float) -> None:
    with pytest.raises(ConfigError, match="180"):
        vary(spherify(gaussian(1, 4, 4)), gaussian(1, 4, 4, seed=1), angle)


# edit -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_schedule_may_be_a_function(either: SphereGenerator) -> None:
    asked: list[tuple[int, int]] = []

    def linear(t: int, steps: int) -> float:
        asked.append((t, steps))
        return 1 - t / steps

    result = edit(either, IMAGES, LABELS, steps=3, strength=0.4, schedule=linear, step_noise=STEP)
    assert asked == [(1, 4), (2, 4), (3, 4)]  # the schedule of one step more: an edit starts with a noisy step
    for same in ("decay", [0.75, 0.5, 0.25], (0.75, 0.5, 0.25)):
        assert torch.equal(
            result.images, edit(either, IMAGES, LABELS, steps=3, strength=0.4, schedule=same, step_noise=STEP).images
        )


@torch.no_grad()
def test_strength_is_how_far_from_the_picture_an_edit_goes(model: SphereAutoencoder) -> None:
    seen: list[Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for strength in (0.0, 0.02, 0.1, 1.0):
        edit(model, IMAGES, LABELS, steps=1, strength=strength, step_noise=STEP)
    hook.remove()
    angles = [angle_between(model.encode(IMAGES, LABELS), v) for v in seen]
    assert angles[0].abs().max() < 0.01
    for less, more in pairwise(angles):
        assert (less < more).all()


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


@pytest.mark.parametrize("name", MASKS)
def test_joined_images_are_stitched_and_edited(model: SphereAutoencoder, name: str) -> None:
    a, b, mask = IMAGES, IMAGES.flip(0), crossover_mask(name, 8)
    joined = edit(model, Joined(a, b, mask), LABELS, steps=2, step_noise=STEP)
    stitched = edit(model, mix_images(a, b, mask), LABELS, steps=2, step_noise=STEP)
    assert torch.equal(joined.images, stitched.images)


@torch.no_grad()
def test_each_step_of_an_edit_starts_from_the_one_before(model: SphereAutoencoder) -> None:
    long = edit(model, IMAGES, LABELS, steps=3, step_noise=STEP)
    guided, x = Guided(model, model.condition(LABELS)), IMAGES
    for images in long.trajectory:
        x, _ = refine(guided, x, math.atan(0.25 * SIGMA), STEP)
        torch.testing.assert_close(images, x, atol=2e-5, rtol=0)
    assert torch.equal(edit(model, IMAGES, LABELS, steps=2, step_noise=STEP).images, long.trajectory[1])
