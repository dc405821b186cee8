"""Logs become series, series become numbers and pictures; a run may be writing meanwhile."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from spheregen.data import read_metadata
from spheregen.errors import ConfigError, SphereGenError
from spheregen.training.plots import (
    Series,
    draw_curves,
    read_series,
    smoothed,
    summary,
    training_seconds,
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


def numbered(*values: float) -> Series:
    return Series(tuple(range(10, 10 * len(values) + 1, 10)), values)


def test_series_of_a_log(tmp_path: Path) -> None:
    series = read_series(write_log(tmp_path, [entry(5), entry(10), {"step": 10, "heldout/psnr": 21.5}]))
    assert series["loss"] == Series((5, 10), (0.2, 0.1))
    assert series["heldout/psnr"] == Series((10,), (21.5,))
    assert not {"step", "epoch"} & series.keys()


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


def test_logs_without_curves(tmp_path: Path) -> None:
    for run in (write_log(tmp_path / "empty", []), write_log(tmp_path / "torn", [], tail='{"step')):
        with pytest.raises(ConfigError, match="has no entry yet"):
            read_series(run)


def test_a_series_in_numbers() -> None:
    assert summary(numbered(3, 1, 4, math.nan, 2)) == {
        "count": 4,
        "last": 2,
        "last_step": 50,
        "min": 1,
        "min_step": 20,
        "max": 4,
        "max_step": 30,
    }
    nothing = summary(numbered(math.nan, math.inf))
    assert nothing["count"] == 0 and nothing["last"] is None and nothing["min"] is None and nothing["max_step"] is None


def test_smoothing_is_a_centred_mean() -> None:
    assert smoothed([1, 2, 6, 4], 1) == [1, 2, 6, 4]
    assert smoothed([1, 2, 6, 4], 3) == [1.5, 3, 4, 5]
    values = smoothed([1, math.nan, 3], 3)
    assert values[0] == 1 and math.isnan(values[1]) and values[2] == 3


def drawn(path: Path, *runs: dict[str, Series], **options: Any) -> str:
    """The texts of a drawing of runs named a, b, ..."""
    draw_curves({"ab"[place]: run for place, run in enumerate(runs)}, path / "curves.svg", **options)
    return (path / "curves.svg").read_text(encoding="utf-8")


def test_one_run_has_a_panel_for_a_group_and_several_one_for_a_metric(tmp_path: Path) -> None:
    names = ["lr", "odd", "loss", "pixel_consistency"]
    run = {name: numbered(3, 2, 1) for name in names}
    alone = drawn(tmp_path, run)
    assert all(f">{title}<" in alone for title in ("loss and its unweighted terms", "learning rate (lr)", "odd"))
    together = drawn(tmp_path, run, run, smooth=3)
    assert all(f">{name}<" in together for name in (*names, "a", "b", "means over 3 log entries"))
    only = drawn(tmp_path, run, only=["loss", "lr"])
    assert "odd" not in only and "learning rate" in only


def test_images_of_every_kind(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [entry(step) for step in range(1, 30)])
    for kind, begin in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        path = tmp_path / f"curves.{kind}"
        draw_curves({"run": read_series(run)}, path, smooth=5)
        assert path.read_bytes().startswith(begin)
    assert read_metadata(tmp_path / "curves.png")["runs"] == "run"


def test_any_values_can_be_drawn(tmp_path: Path) -> None:
    """Without a warning either: they are errors here."""
    for values in ((1.0,), (-1.0, 2.0), (math.nan, math.nan), (1e-30, 1e30), (math.inf, 1.0)):
        draw_curves({"run": {"loss": numbered(*values)}}, tmp_path / "curves.png", smooth=3)


def test_a_missing_matplotlib_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SphereGenError, match=r"spheregen\[plot\]"):
        draw_curves({"run": {"loss": numbered(2, 1)}}, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_a_run_is_that_of_its_steps() -> None:
    rates = Series((10, 30), (50.0, 100.0))  # 10 steps of 10 images at 50 a second, then 20 at 100
    assert training_seconds(rates, 10) == pytest.approx(4.0)
    assert training_seconds(rates, 10, until=20) == pytest.approx(3.0)
    assert training_seconds(rates, 10, until=10) == pytest.approx(2.0)
