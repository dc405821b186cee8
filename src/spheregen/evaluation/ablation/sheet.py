"""The same seeds under every combination on one labelled sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spheregen.data import image_grid, labelled_sheet, save_png
from spheregen.evaluation.ablation.record import note_of

_COLUMNS, _WRAPPED = 8, 6  # cells of a row of the sheet, named at its edges, or else below each cell
_CELL_SIDE = 32  # pixels up to which small pictures are enlarged

Row = Mapping[str, Any]


def save_samples(path: Path, samples: Tensor, about: Mapping[str, str]) -> None:
    """Keep samples (n, C, H, W) uint8 as one picture."""
    columns = max(1, round(len(samples) ** 0.5))
    picture = image_grid(samples, columns=columns, pad=0)
    save_png(picture, path, {**about, "columns": str(columns), "count": str(len(samples))})


def load_samples(path: Path) -> Tensor:
    """What `save_samples` kept."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
        columns, count = int(image.info["columns"]), int(image.info["count"])
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    rows = -(-count // columns)
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    grid = torch.from_numpy(pixels.copy()).view(rows, height, columns, width, -1)
    return grid.permute(0, 2, 4, 1, 3).reshape(rows * columns, -1, height, width)[:count]


def samples_sheet(study: Mapping[str, Any], pictures: Sequence[Path | None]) -> Image.Image:
    """All samples of a study: a column for each value of the last key where they are few, else a name at each cell.

    Args:
        study: of `record.study_json`.
        pictures: of `save_samples`, for each row that has some.
    """
    rows: Sequence[Row] = study["rows"]
    cells = [None if path is None else load_samples(path) for path in pictures]
    quality = study["columns"][0]
    notes = [
        f"{quality['title']} {row['mean'][quality['key']]:.3g}" if quality["key"] in row["mean"] else note_of(row)
        for row in rows
    ]
    largest = max((cell.shape[-1] for cell in cells if cell is not None), default=_CELL_SIDE)
    scale = max(1, _CELL_SIDE // largest)
    last = len(study["over"][-1]["values"])
    if not study["one_by_one"] and last <= _COLUMNS:
        starts = range(0, len(rows), last)
        *outer, inner = [axis["key"] for axis in study["over"]]
        return labelled_sheet(
            [cells[start : start + last] for start in starts],
            ["\n".join(f"{key}={rows[start]['texts'][key]}" for key in outer) for start in starts],
            [f"{inner}={rows[place]['texts'][inner]}" for place in range(last)],
            scale=scale,
            notes=[notes[start : start + last] for start in starts],
        )
    width = min(_WRAPPED, len(rows))
    starts = range(0, len(rows), width)
    named = [f"{_name(row)}\n{note}" for row, note in zip(rows, notes, strict=True)]
    padding = -len(rows) % width
    cells += [None] * padding
    named += [""] * padding
    return labelled_sheet(
        [cells[start : start + width] for start in starts],
        ["" for _ in starts],
        [""] * width,
        scale=scale,
        notes=[named[start : start + width] for start in starts],
    )


def _name(row: Row) -> str:
    """What differs in a cell."""
    if row["varies"] is None:
        return "\n".join(f"{key}={text}" for key, text in row["texts"].items())
    return f"{row['varies']}={row['texts'][row['varies']]}"
