"""Ways between points on the sphere: exact ends, constant speed, never off the sphere, four corners."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spheregen.sampling import blend, interpolate
from spheregen.sphere import angle_between, rotate, spherify

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


@pytest.mark.parametrize("dtype", ROUNDING)
def test_slerp_walks_evenly_on_the_sphere(dtype: torch.dtype) -> None:
    for degrees in (179.9,) if dtype == torch.bfloat16 else ANGLES + NEARLY_OPPOSITE:
        for seed in range(3):
            check_walk(pair(degrees, dtype, seed), dtype)


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


# errors ---------------------------------------------------------------------------------------------------------------
