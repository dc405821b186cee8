"""Logs become series, series become numbers and pictures; a run may be writing meanwhile."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from spheregen.data import read_image, read_metadata
from spheregen.errors import ConfigError
from spheregen.training import plots
from spheregen.training.plots import (
    Series,
    choose_metrics,
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


def test_a_log_that_is_being_written(tmp_path: Path) -> None:
    series = read_series(write_log(tmp_path, [entry(5), entry(10)], tail='{"step": 15, "loss": 0.0'))
    assert series["loss"].steps == (5, 10)


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


def test_folders_without_curves(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    empty = write_log(tmp_path / "empty", [])
    torn = write_log(tmp_path / "torn", [], tail='{"step')
    for run, words in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "has no log.jsonl"),
        (file, "is no run folder"),
        (empty, "has no entry yet"),
        (torn, "has no entry yet"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_series(run)


def test_metrics_are_chosen_by_name() -> None:
    runs = {"a": {"loss": numbered(1), "lr": numbered(1)}, "b": {"loss": numbered(2), "mfu": numbered(0.1)}}
    assert choose_metrics(runs, None) == ["loss", "lr", "mfu"]
    assert choose_metrics(runs, ["mfu", "loss", "mfu"]) == ["mfu", "loss"]
    with pytest.raises(ConfigError, match=r"did you mean 'loss'.*there are: loss, lr, mfu"):
        choose_metrics(runs, ["los"])


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


def test_one_run_has_a_panel_for_a_group_and_several_one_for_a_metric() -> None:
    names = ["lr", "odd", "loss", "pixel_consistency", "latent_mean_angle", "latent_coverage", "heldout/psnr"]
    grouped = [panel.metrics for panel in plots._panels(names, grouped=True)]
    assert grouped == [
        ("loss", "pixel_consistency"),
        ("lr",),
        ("latent_mean_angle",),
        ("latent_coverage",),
        ("odd",),
        ("heldout/psnr",),
    ]
    single = plots._panels(names, grouped=False)
    assert sorted(panel.metrics for panel in single) == sorted((name,) for name in names)
    assert {panel.title for panel in single} == set(names)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_of_every_kind(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    run = write_log(tmp_path / "run", [entry(step) for step in range(1, 30)])
    path = tmp_path / f"curves.{kind}"
    draw_curves({"run": read_series(run)}, path, smooth=5)
    start = path.read_bytes()[:8]
    assert {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind] == start[: {"png": 4, "svg": 5, "pdf": 4}[kind]]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["run", path.name])
    if kind == "png":
        assert read_metadata(path)["runs"] == "run"


@pytest.mark.parametrize(
    "values", [(1.0,), (0.0, 0.0), (-1.0, 2.0), (math.nan, 1.0), (math.nan, math.nan), (1e-30, 1e30), (math.inf, 1.0)]
)
def test_any_values_can_be_drawn(tmp_path: Path, values: tuple[float, ...]) -> None:
    """Without a warning either: they are errors here."""
    pytest.importorskip("matplotlib")
    for smooth in (1, 3):
        series = {"loss": numbered(*values), "pixel_consistency": numbered(0.5, 0.2), "lr": numbered(*values)}
        draw_curves({"run": series}, tmp_path / "curves.png", smooth=smooth)


def test_many_runs_with_other_metrics(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {f"run {i}": {"loss": numbered(3, 2, 1 + i), f"own{i % 2}": numbered(1, 2)} for i in range(9)}
    draw_curves(runs, tmp_path / "curves.png")
    assert read_image(tmp_path / "curves.png").width > 500


def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    sys.modules.pop("matplotlib.pyplot", None)
    draw_curves({"run": {"loss": numbered(2, 1)}}, tmp_path / "curves.png")
    assert "matplotlib.pyplot" not in sys.modules
    assert dict(matplotlib.rcParams) == before


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(ConfigError) as caught:
        draw_curves({"run": {"loss": numbered(2, 1)}}, tmp_path / "curves.png")
    assert 'pip install "spheregen[plot]"' in str(caught.value)


def test_wrong_settings(tmp_path: Path) -> None:
    runs = {"run": {"loss": numbered(2, 1)}}
    with pytest.raises(ConfigError, match="at least 1 log entry"):
        draw_curves(runs, tmp_path / "curves.png", smooth=0)
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        draw_curves(runs, tmp_path / "curves.jpg")
    with pytest.raises(ConfigError, match="no log has the metric"):
        draw_curves(runs, tmp_path / "curves.png", only=["what"])
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_a_run_is_that_of_its_steps() -> None:
    rates = Series((10, 30), (50.0, 100.0))  # 10 steps of 10 images at 50 a second, then 20 at 100
    assert training_seconds(rates, 10) == pytest.approx(4.0)
    assert training_seconds(rates, 10, until=20) == pytest.approx(3.0)
    assert training_seconds(rates, 10, until=10) == pytest.approx(2.0)
