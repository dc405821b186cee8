"""Changing images through the sphere: masks, stitched pictures, variations at an angle, edits towards a class."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.protocol import SphereGenerator
from spheregen.sampling import (
    MASKS,
    Guided,
    Joined,
    Steered,
    crossover_mask,
    edit,
    refine,
    stitch,
    vary,
)
from spheregen.sphere import angle_between, spherify
from tests.sampling.test_sampling import IMAGES, KINDS, LABELS, STEP, gaussian, model_of

SIZES = [1, 2, 5, 8, 9]
DIAGONALS = ("diagonal", "antidiagonal")


@pytest.fixture(scope="module")
def model() -> SphereAutoencoder:
    return model_of()


@pytest.fixture(scope="module", params=KINDS)
def either(request: pytest.FixtureRequest) -> SphereGenerator:
    return KINDS[request.param](3)


def flipped(name: str, mask: Tensor) -> Tensor:
    """The mask mirrored so that the two sides change places."""
    if name in DIAGONALS:
        return mask.transpose(-1, -2) if name == "diagonal" else mask.flip(-1).transpose(-1, -2).flip(-1)
    return mask.flip(-1 if name == "left-right" else -2)


# masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_one_picture_of_the_models_size(name: str, size: int) -> None:
    mask = crossover_mask(name, size)
    assert mask.shape == (1, 1, size, size)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("size", [2, 8, 64])
def test_halves_of_even_sizes_are_half_the_picture(size: int) -> None:
    left, top = crossover_mask("left-right", size)[0, 0], crossover_mask("top-bottom", size)[0, 0]
    assert (left[:, : size // 2] == 1).all() and (left[:, size // 2 :] == 0).all()
    assert (top[: size // 2] == 1).all() and (top[size // 2 :] == 0).all()


@pytest.mark.parametrize("size", [1, 5, 9])
def test_the_middle_line_of_odd_sizes_belongs_to_one_picture(size: int) -> None:
    left, top = crossover_mask("left-right", size)[0, 0], crossover_mask("top-bottom", size)[0, 0]
    assert (left[:, : size // 2] == 1).all() and (left[:, size // 2 :] == 0).all()
    assert torch.equal(top, left.T)


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


@pytest.mark.parametrize("size", [2, 8, 9])
@pytest.mark.parametrize("name", MASKS)
def test_the_other_side_is_the_mirror_image(name: str, size: int) -> None:
    mask = crossover_mask(name, size)
    both = mask + flipped(name, mask)
    middle = both if name in DIAGONALS or size % 2 == 0 else both.clone()
    if name not in DIAGONALS and size % 2:
        (middle.movedim(-1, 0) if name == "left-right" else middle.movedim(-2, 0))[size // 2] += 1
    assert torch.equal(middle, torch.ones_like(mask))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("left-rigth", "unknown mask 'left-rigth'; did you mean 'left-right'"),
        ("diagonals", "did you mean 'diagonal'"),
        ("zzz", "unknown mask 'zzz'; use left-right, top-bottom, diagonal, antidiagonal, or a picture"),
        ("", "unknown mask ''"),
    ],
)
def test_an_unknown_mask_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        crossover_mask(name, 8)
    assert "\n" not in str(caught.value)


# stitch ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MASKS)
def test_stitch_takes_each_picture_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    a, b = IMAGES.to(dtype), (IMAGES.flip(0) / 3).to(dtype)
    mask = crossover_mask(name, 8)
    joined = stitch(a, b, mask)
    assert joined.dtype == dtype
    everywhere = mask.expand_as(a)
    assert torch.equal(joined[everywhere == 1], a[everywhere == 1])
    assert torch.equal(joined[everywhere == 0], b[everywhere == 0])
    mixed = everywhere == 0.5
    torch.testing.assert_close(
        joined[mixed], ((a + b) / 2)[mixed], atol=1e-2 if dtype == torch.bfloat16 else 1e-6, rtol=0
    )


@pytest.mark.parametrize("name", MASKS)
def test_exchanging_the_pictures_is_the_opposite_mask(name: str) -> None:
    a, b, mask = IMAGES, IMAGES.flip(0), crossover_mask(name, 8)
    torch.testing.assert_close(stitch(a, b, mask), stitch(b, a, 1 - mask), atol=1e-6, rtol=0)
    torch.testing.assert_close(stitch(a, b, mask) + stitch(b, a, mask), a + b, atol=1e-6, rtol=0)


def test_stitch_takes_a_mask_for_each_picture() -> None:
    a, b = IMAGES, IMAGES.flip(0)
    masks = torch.cat([crossover_mask(name, 8) for name in ("left-right", "diagonal", "top-bottom")])
    together = stitch(a, b, masks)
    for i in range(3):
        assert torch.equal(together[i], stitch(a[i : i + 1], b[i : i + 1], masks[i : i + 1])[0])


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
    with pytest.raises(ConfigError, match="between 0 and 180 degrees") as caught:
        vary(spherify(gaussian(1, 4, 4)), gaussian(1, 4, 4, seed=1), angle)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
def test_a_schedule_function_is_checked(either: SphereGenerator, radius: float) -> None:
    with pytest.raises(ConfigError, match="finite numbers from 0 up"):
        edit(either, IMAGES, schedule=lambda t, steps: radius)


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_impossible_strengths_are_refused(either: SphereGenerator, strength: float) -> None:
    with pytest.raises(ConfigError, match="strength is a fraction of the training noise from 0 up"):
        edit(either, IMAGES, strength=strength)


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
        self.calls: list[tuple[SphereGenerator, Tensor | None]] = []

    def __call__(self, model: SphereGenerator, labels: Tensor | None) -> Steered:
        self.calls.append((model, labels))
        return Guided(model, model.condition(None if labels is None else 2 - labels))


@torch.no_grad()
def test_a_guidance_of_your_own_takes_the_place_of_a_scale(either: SphereGenerator) -> None:
    guidance = Backwards()
    result = edit(either, IMAGES, LABELS, steps=2, guidance=guidance, step_noise=STEP)
    assert len(guidance.calls) == 1  # not once a step
    assert guidance.calls[0][0] is either and guidance.calls[0][1] is LABELS
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
    stitched = edit(model, stitch(a, b, mask), LABELS, steps=2, step_noise=STEP)
    assert torch.equal(joined.images, stitched.images)


@torch.no_grad()
def test_each_step_of_an_edit_starts_from_the_one_before(model: SphereAutoencoder) -> None:
    long = edit(model, IMAGES, LABELS, steps=3, step_noise=STEP)
    steered, x = Guided(model, LABELS), IMAGES
    for images in long.trajectory:
        x = refine(steered, x, 0.25, STEP)
        torch.testing.assert_close(images, x, atol=2e-5, rtol=0)
    assert torch.equal(edit(model, IMAGES, LABELS, steps=2, step_noise=STEP).images, long.trajectory[1])


@pytest.mark.parametrize("labels", [LABELS[:1], LABELS[:2], torch.zeros(4).long(), torch.tensor(1), torch.eye(4)])
def test_another_number_of_labels_is_refused(either: SphereGenerator, labels: Tensor) -> None:
    with pytest.raises(ConfigError, match="for 3 samples; give one for each"):
        edit(either, IMAGES, labels)
