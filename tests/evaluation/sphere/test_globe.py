"""The globe: what is in front is drawn in front, in its colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spheregen.evaluation.sphere.globe import class_colors, draw_globe, globe_sheet, project
from spheregen.evaluation.sphere.spectrum import spectrum
from tests.evaluation.sphere.toys import uniform

RED = np.array([[255, 0, 0]], dtype=np.uint8)


def reds(image: object) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    pixels = np.asarray(image).astype(int)
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (pixels[..., 0] > 120) & (pixels[..., 1] < 60)
    return found


def test_a_point_is_seen_from_one_side() -> None:
    towards = np.array([[0.0, 0.0, 1.0]])
    assert reds(draw_globe(towards, RED)).any() and not reds(draw_globe(towards, RED, back=True)).any()
    assert reds(draw_globe(-towards, RED, back=True)).any() and not reds(draw_globe(-towards, RED)).any()


@pytest.mark.parametrize("back", [False, True])
def test_a_point_lies_where_it_should(back: bool) -> None:
    """Right stays right in front, and is left from behind; up stays up."""
    side = -1.0 if back else 1.0
    place = np.array([[0.6, 0.0, side * 0.8]])
    _, columns = np.nonzero(reds(draw_globe(place, RED, back=back)))
    assert (columns.mean() > 150) is not back
    rows, _ = np.nonzero(reds(draw_globe(np.array([[0.0, 0.8, side * 0.6]]), RED, back=back)))
    lower, _ = np.nonzero(reds(draw_globe(np.array([[0.0, -0.2, side * 0.98]]), RED, back=back)))
    assert rows.mean() < lower.mean()


def test_the_ball_is_lit_on_white() -> None:
    pixels = np.asarray(draw_globe(np.zeros((0, 3)), RED[:0], size=100)).astype(int)
    assert (pixels[0, 0] == 255).all() and pixels.shape == (100, 100, 3)
    assert pixels[30, 30].sum() > pixels[75, 75].sum()


def test_projection_on_axes() -> None:
    points = torch.tensor([[3.0, 4.0, 0.0, 12.0], [0.0, 0.0, 1.0, 0.0]])
    axes = torch.eye(4, dtype=torch.float64)[:3]
    assert project(points, axes) == pytest.approx(np.array([[0.6, 0.8, 0], [0, 0, 1]]), abs=1e-6)


def test_colours_differ() -> None:
    assert len({tuple(color) for color in class_colors(60).tolist()}) == 60
    assert class_colors(0).shape == (0, 3)


def test_sheets() -> None:
    points = uniform(50, 6, 1)
    labels = torch.arange(50) % 12
    with_classes = [("data", points, spectrum(points), labels), ("random", points, spectrum(points), None)]
    names = [f"class {number}" for number in range(12)]
    sheet = globe_sheet(with_classes, names, size=60)
    plain = globe_sheet([(name, p, s, None) for name, p, s, _ in with_classes], [], size=60)
    assert sheet.height > plain.height  # the legend, in two lines
    assert globe_sheet(with_classes, names * 2, size=60).height == plain.height  # too many classes for one
    assert np.asarray(sheet).tolist() == np.asarray(globe_sheet(with_classes, names, size=60)).tolist()
