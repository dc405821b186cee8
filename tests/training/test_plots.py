"""Logs become series, series become numbers and pictures; a run may be writing meanwhile."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from spheregen.training.plots import (
    read_series,
)


def write_log(run: Path, entries: list[dict[str, Any]], tail: str = "") -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail, encoding="utf-8")
    return run


def entry(step: int, **more: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 10,
        "loss": 1 / step,
        "pixel_reconstruction": 0.5 / step,
        "grad_norm": 2.0,
        "lr": 1e-3,
        "images_per_second": 90.0,
        **more,
    }


def test_repeated_steps_strange_lines_and_strange_values(tmp_path: Path) -> None:
    entries: list[Any] = [
        entry(10),
        entry(5),
        {"step": 10, "loss": 7.0},
        [1],
        3,
        {"loss": 1.0},
        {"step": "x", "loss": 1},
    ]
    entries.append({"step": 15, "loss": math.nan, "note": "text", "flag": True, "list": [1], "none": None})
    series = read_series(write_log(tmp_path, entries, tail="\x00\n"))
    assert series["loss"].steps == (5, 10, 15)
    assert series["loss"].values[:2] == (0.2, 7.0) and math.isnan(series["loss"].values[2])
    assert not {"note", "flag", "list", "none"} & series.keys()
