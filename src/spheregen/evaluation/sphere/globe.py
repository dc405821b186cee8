"""Points of a high-dimensional sphere on a globe that one can look at: their three leading directions, front and back.

A picture for the eye and no measurement: L dimensions lose nearly all of their distances on the way to three.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from spheregen.data.sheets import labelled_sheet
from spheregen.evaluation.sphere.pairs import unit_points
from spheregen.evaluation.sphere.spectrum import Spectrum

Floats = npt.NDArray[np.float64]
Colors = npt.NDArray[np.uint8]

PALETTE = (
    *((31, 99, 176), (222, 110, 20), (38, 142, 64), (200, 40, 50), (128, 80, 180)),
    *((130, 84, 66), (220, 110, 180), (100, 100, 100), (160, 160, 20), (20, 170, 190)),
)
LEGEND_CLASSES = 20
_PLAIN = np.array([(70, 90, 120)], dtype=np.uint8)  # of points without classes
_SCALE = 3  # drawn so many times as large, against jagged edges
_RADIUS = 0.96
_TILT = math.radians(22)  # of the globe's axis towards the viewer, so that its grid reads as a globe
_LIGHT = np.array([-0.45, 0.55, 0.70]) / math.sqrt(0.45**2 + 0.55**2 + 0.70**2)


def globe_sheet(
    sets: Sequence[tuple[str, Tensor, Spectrum, Tensor | None]],
    class_names: Sequence[str],
    *,
    size: int = 300,
    most: int = 2000,
) -> Image.Image:
    """Sets of points as globes side by side: a row for each set, front and back, and the classes' colours below.

    Args:
        sets: a name, points (n, L), their spectrum, whose three axes are looked along, and their classes, (n,) int64
            places in `class_names`, or None: one colour.
        most: points that are drawn of each set; the first.
    """
    colors = class_colors(len(class_names))
    rows = []
    for _, points, seen, classes in sets:
        places = project(points[:most], seen.axes)
        chosen = np.repeat(_PLAIN, len(places), axis=0) if classes is None else colors[classes[:most].numpy()]
        pair = [draw_globe(places, chosen, size=size, back=back) for back in (False, True)]
        rows.append([torch.from_numpy(np.array(globe)).permute(2, 0, 1)[None] for globe in pair])
    sheet = labelled_sheet(rows, [name for name, *_ in sets], ["front", "back"], pad=0)
    if not 0 < len(class_names) <= LEGEND_CLASSES:
        return sheet
    swatches: list[Tensor | None] = [torch.from_numpy(color).view(1, 3, 1, 1).expand(1, 3, 14, 28) for color in colors]
    lines = [slice(start, start + 10) for start in range(0, len(swatches), 10)]
    legends = [labelled_sheet([swatches[line]], [""], class_names[line], pad=0) for line in lines]
    whole = Image.new(
        "RGB",
        (max(part.width for part in (sheet, *legends)), sheet.height + sum(part.height for part in legends)),
        "white",
    )
    y = 0
    for part in (sheet, *legends):
        whole.paste(part, (0, y))
        y += part.height
    return whole


@torch.no_grad()
def project(points: Tensor, axes: Tensor) -> Floats:
    """Points (n, L) on three axes (3, L), as unit vectors (n, 3)."""
    unit = unit_points(points, least=1).cpu()
    three = torch.cat([part.double() @ axes.T for part in unit.split(1024)])
    result: Floats = (three / torch.linalg.vector_norm(three, dim=1, keepdim=True).clamp_min(1e-30)).numpy()
    return result


def class_colors(count: int) -> Colors:
    """(count, 3) uint8: colours that are told apart, ten chosen ones first, then hues by the golden ratio."""
    colors = list(PALETTE[:count])
    for index in range(len(colors), count):
        value = colorsys.hsv_to_rgb(index * 0.61803398875 % 1, 0.45 + 0.4 * (index % 2), 0.6 + 0.25 * (index % 3 == 0))
        colors.append((round(255 * value[0]), round(255 * value[1]), round(255 * value[2])))
    return np.array(colors, dtype=np.uint8).reshape(count, 3)


def draw_globe(points: Floats, colors: Colors, *, size: int = 300, back: bool = False) -> Image.Image:
    """A shaded globe with a grid of 30 degrees and the points of its near side.

    Args:
        points: (n, 3) unit vectors: x right, y up, z towards the viewer.
        colors: (n, 3) uint8.
        size: pixels, both ways.
        back: look from behind.
    """
    side = size * _SCALE
    canvas = Image.fromarray(_shaded(side))
    draw = ImageDraw.Draw(canvas)
    for line in _grid_lines():
        _draw_line(draw, _seen(line, back=back), side)
    places = _seen(points, back=back)
    radius = _SCALE * size * (0.011 if len(points) < 1000 else 0.008)
    for index in np.argsort(places[:, 2]):
        x, y, z = places[index]
        if z < 0:
            continue
        column, row = _pixel(x, side), _pixel(-y, side)
        shade = 0.55 + 0.45 * z  # darker towards the rim
        fill = tuple(int(shade * channel) for channel in colors[index])
        box = (column - radius, row - radius, column + radius, row + radius)
        draw.ellipse(box, fill=fill, outline=(255, 255, 255))
    return canvas.reduce(_SCALE)


def _shaded(side: int) -> Colors:
    """A ball lit from above on the left, on white, (side, side, 3)."""
    across = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = across[None, :] / _RADIUS, -across[:, None] / _RADIUS
    inside = x**2 + y**2 < 1
    z = np.sqrt(np.maximum(0, 1 - x**2 - y**2))
    light = np.maximum(0, x * _LIGHT[0] + y * _LIGHT[1] + z * _LIGHT[2])
    ball = np.array([236.0, 240.0, 246.0]) * (0.66 + 0.34 * light)[..., None]
    return np.where(inside[..., None], np.minimum(ball, 255), 255).astype(np.uint8)


def _grid_lines() -> list[Floats]:
    """Parallels and meridians every 30 degrees, as points (m, 3)."""
    turn = np.linspace(0, 2 * math.pi, 181)
    lines = []
    for degrees in range(-60, 90, 30):
        latitude = math.radians(degrees)
        height, wide = math.sin(latitude), math.cos(latitude)
        lines.append(np.stack([wide * np.cos(turn), np.full_like(turn, height), wide * np.sin(turn)], axis=1))
    for degrees in range(0, 180, 30):
        longitude = math.radians(degrees)
        lines.append(
            np.stack(
                [np.cos(turn) * math.cos(longitude), np.sin(turn), np.cos(turn) * math.sin(longitude)],
                axis=1,
            )
        )
    return lines


def _seen(points: Floats, *, back: bool) -> Floats:
    """From the viewer's side: the axis tilted, and half a turn around the upright for the back."""
    x, y, z = points.T
    tilted = np.stack([x, y * math.cos(_TILT) - z * math.sin(_TILT), y * math.sin(_TILT) + z * math.cos(_TILT)], axis=1)
    return tilted * np.array([-1.0, 1.0, -1.0]) if back else tilted


def _draw_line(draw: ImageDraw.ImageDraw, line: Floats, side: int) -> None:
    for a, b in itertools.pairwise(line):
        if a[2] >= 0 and b[2] >= 0:
            ends = [(_pixel(p[0], side), _pixel(-p[1], side)) for p in (a, b)]
            draw.line(ends, fill=(196, 202, 212), width=_SCALE)


def _pixel(value: float, side: int) -> float:
    return (value * _RADIUS + 1) / 2 * side
