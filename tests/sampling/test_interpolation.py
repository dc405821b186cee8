"""Ways between points on the sphere: exact ends, constant speed, never off the sphere, four corners."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.sampling import blend, interpolate, lerp
from spheregen.sphere import angle_between, rotate, slerp, spherify
from tests.sampling.test_sampling import gaussian

FRAMES = 9
SHAPE = (16, 8)
# how far off the sphere (relative) and off the even way (degrees) rounding may lead
ROUNDING = {torch.float64: (2e-6, 2e-4), torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-3, 0.3)}
ANGLES = [0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 1, 30, 90, 150, 179, 179.99999, 180.0]
NEARLY_OPPOSITE = [179.9, 179.99, 179.999, 179.9995]


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spherify(torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def pair(degrees: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Two points that far apart, (2, N, d)."""
    a = points(1, *SHAPE, seed=seed, dtype=torch.float64)
    b = -a if degrees == 180 else rotate(a, points(1, *SHAPE, seed=seed + 100, dtype=torch.float64), degrees)
    return torch.cat([a, b]).to(dtype)


def off_sphere(v: Tensor) -> float:
    return float((v.double().flatten(1).norm(dim=1) / math.sqrt(v[0].numel()) - 1).abs().max())


def check_walk(ends: Tensor, dtype: torch.dtype) -> None:
    """The ends bit for bit, everything on the sphere, equal angles between the frames."""
    norm, degrees = ROUNDING[dtype]
    way = interpolate(ends, FRAMES)
    assert way.shape == (FRAMES, *SHAPE) and way.dtype == dtype
    assert torch.equal(way[0], ends[0]) and torch.equal(way[-1], ends[1])
    assert off_sphere(way) < norm
    apart = angle_between(ends[:1].double(), ends[1:].double())
    even = apart * torch.linspace(0, 1, FRAMES, dtype=torch.float64)
    assert (angle_between(ends[:1].double().expand(FRAMES, *SHAPE), way.double()) - even).abs().max() < degrees
    steps = angle_between(way[:-1].double(), way[1:].double())
    assert (steps - apart / (FRAMES - 1)).abs().max() < 2 * degrees


@pytest.mark.parametrize("degrees", ANGLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_walks_evenly_on_the_sphere(dtype: torch.dtype, degrees: float) -> None:
    for seed in range(3):
        check_walk(pair(degrees, dtype, seed), dtype)


@pytest.mark.parametrize("degrees", NEARLY_OPPOSITE)
def test_slerp_between_nearly_opposite_points(degrees: float) -> None:
    for seed in range(3):
        check_walk(pair(degrees, torch.float64, seed), torch.float64)


@pytest.mark.parametrize(
    ("degrees", "dtype"), [*((degrees, torch.float32) for degrees in NEARLY_OPPOSITE), (179.9, torch.bfloat16)]
)
def test_slerp_between_nearly_opposite_points_in_few_digits(degrees: float, dtype: torch.dtype) -> None:
    for seed in range(3):
        check_walk(pair(degrees, dtype, seed), dtype)


@pytest.mark.parametrize("degrees", [0.0, 0.01, 1, 30, 90, 150, 180.0])
def test_slerp_in_bfloat16_is_as_good_as_its_numbers(degrees: float) -> None:
    for seed in range(3):
        check_walk(pair(degrees, torch.bfloat16, seed), torch.bfloat16)


@pytest.mark.parametrize("degrees", ANGLES + NEARLY_OPPOSITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_walk_are_finite(dtype: torch.dtype, degrees: float) -> None:
    ends = pair(degrees, dtype).requires_grad_()
    way = interpolate(ends, 5)
    (way * gaussian(*way.shape).to(dtype)).sum().backward()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()
    assert ends.grad.abs().max() > 0


def test_gradients_between_identical_points_are_finite() -> None:
    v = points(1, *SHAPE).requires_grad_()
    slerp(v, v, 0.3).square().sum().backward()
    assert v.grad is not None
    assert v.grad.isfinite().all()


# lerp -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("degrees", [0.0, 1e-3, 1, 90, 170])
def test_lerp_is_the_straight_line_back_on_the_sphere(degrees: float, dtype: torch.dtype) -> None:
    ends = pair(degrees, dtype)
    way = interpolate(ends, FRAMES, "lerp")
    assert torch.equal(way[0], ends[0]) and torch.equal(way[-1], ends[1])
    assert off_sphere(way) < max(ROUNDING[dtype][0], 1e-4)  # the line from 1 to 170 degrees passes far inside
    middle = spherify((ends[:1].double() + ends[1:].double()) / 2)
    assert angle_between(middle, way[FRAMES // 2 : FRAMES // 2 + 1].double()).max() < ROUNDING[dtype][1] * 20
    turned = angle_between(ends[:1].double().expand(FRAMES, *SHAPE), way.double())
    assert (turned.diff() > -ROUNDING[dtype][1]).all()  # never back


def test_lerp_is_slower_at_the_ends_and_goes_the_way_of_slerp() -> None:
    ends = pair(150, torch.float32)
    straight, even = interpolate(ends, FRAMES, "lerp"), interpolate(ends, FRAMES)
    steps = angle_between(straight[:-1], straight[1:])
    assert steps[0] < 150 / (FRAMES - 1) / 2
    assert steps[FRAMES // 2] > 2 * steps[0]
    apart = angle_between(ends[:1].expand(FRAMES, *SHAPE), straight) + angle_between(
        straight, ends[1:].expand(FRAMES, *SHAPE)
    )
    assert (apart - 150).abs().max() < 1e-3  # on the same great circle
    torch.testing.assert_close(straight[FRAMES // 2], even[FRAMES // 2], atol=1e-4, rtol=0)


def test_lerp_takes_one_position_or_one_for_each() -> None:
    a, b = points(3, *SHAPE), points(3, *SHAPE, seed=1)
    together = lerp(a, b, torch.tensor([0.0, 0.3, 1.0]))
    assert torch.equal(together[0], a[0]) and torch.equal(together[2], b[2])
    torch.testing.assert_close(together[1], lerp(a, b, 0.3)[1], atol=1e-6, rtol=0)
    assert torch.equal(lerp(a, b, 0.0), a) and torch.equal(lerp(a, b, 1), b)


# four corners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["slerp", "lerp"])
@pytest.mark.parametrize("frames", [2, 3, 6])
def test_four_corners(path: str, frames: int) -> None:
    corners = points(4, *SHAPE)
    square = interpolate(corners, frames, path)
    assert square.shape == (frames**2, *SHAPE)
    assert off_sphere(square) < 1e-4
    rows = square.view(frames, frames, *SHAPE)
    for row, column, corner in ((0, 0, 0), (0, -1, 1), (-1, 0, 2), (-1, -1, 3)):
        assert torch.equal(rows[row, column], corners[corner])
    for edge, ends in ((rows[0], [0, 1]), (rows[-1], [2, 3]), (rows[:, 0], [0, 2]), (rows[:, -1], [1, 3])):
        torch.testing.assert_close(edge, interpolate(corners[ends], frames, path), atol=1e-5, rtol=0)
    for row in range(1, frames - 1):  # down between the upper and the lower edge
        for column in range(frames):
            between = interpolate(torch.stack([rows[0, column], rows[-1, column]]), frames, path)[row]
            torch.testing.assert_close(rows[row, column], between, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", ["slerp", "lerp"])
def test_a_square_is_mirrored_with_its_corners(path: str) -> None:
    corners, frames = points(4, *SHAPE), 5
    rows = interpolate(corners, frames, path).view(frames, frames, *SHAPE)
    across = interpolate(corners[[1, 0, 3, 2]], frames, path).view(frames, frames, *SHAPE)
    down = interpolate(corners[[2, 3, 0, 1]], frames, path).view(frames, frames, *SHAPE)
    torch.testing.assert_close(across, rows.flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(down, rows.flip(0), atol=1e-5, rtol=0)


def test_a_square_with_equal_rows_is_a_line_and_all_equal_corners_are_a_point() -> None:
    a, b = points(2, *SHAPE)
    rows = interpolate(torch.stack([a, b, a, b]), 4).view(4, 4, *SHAPE)
    for row in rows:
        torch.testing.assert_close(row, interpolate(torch.stack([a, b]), 4), atol=1e-5, rtol=0)
    point = interpolate(a.expand(4, *SHAPE), 3)
    torch.testing.assert_close(point, a.expand(9, *SHAPE), atol=1e-5, rtol=0)


# blend ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [2, 4])
@pytest.mark.parametrize("frames", [2, 5])
def test_mixtures_sum_to_one_and_go_as_the_points_do(ends: int, frames: int) -> None:
    classes = torch.eye(5)[:ends]
    mixed = blend(classes, frames)
    assert mixed.shape == (frames if ends == 2 else frames**2, 5)
    torch.testing.assert_close(mixed.sum(1), torch.ones(len(mixed)))
    assert (mixed >= 0).all()
    corners = [0, frames - 1, frames * (frames - 1), frames**2 - 1]
    for corner in range(ends):
        assert torch.equal(mixed[corners[corner]], classes[corner])
    t = torch.linspace(0, 1, frames)
    torch.testing.assert_close(mixed[:frames, 1], t)  # across, to the second end
    if ends == 4:
        torch.testing.assert_close(mixed.view(frames, frames, 5)[:, 0, 2], t)  # down, to the third
        torch.testing.assert_close(mixed.view(frames, frames, 5)[..., 3], torch.outer(t, t))


def test_a_blend_of_random_mixtures_is_bilinear() -> None:
    ends = torch.softmax(gaussian(4, 6), dim=1)
    mixed = blend(ends, 4)
    torch.testing.assert_close(mixed.sum(1), torch.ones(16))
    torch.testing.assert_close(mixed.view(4, 4, 6).transpose(0, 1).flatten(0, 1), blend(ends[[0, 2, 1, 3]], 4))


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "frames", "path", "reason"),
    [
        (0, 3, "slerp", "two ends or the four corners of a square, not 0"),
        (1, 3, "slerp", "two ends or the four corners of a square, not 1"),
        (3, 3, "slerp", "two ends or the four corners of a square, not 3"),
        (5, 3, "lerp", "not 5"),
        (2, 1, "slerp", "frames is at least 2, the ends themselves, not 1"),
        (4, 0, "slerp", "not 0"),
        (2, -3, "slerp", "not -3"),
        (2, 3, "slrp", "unknown path 'slrp'; did you mean 'slerp'"),
        (2, 3, "cubic", "unknown path 'cubic'; use slerp, lerp"),
    ],
)
def test_impossible_ways_are_refused(ends: int, frames: int, path: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        interpolate(torch.ones(ends, *SHAPE), frames, path)
    assert "\n" not in str(caught.value)
