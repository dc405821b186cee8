"""The page of a study, from tables made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.evaluation.ablation.page import FEW, _plot, study_page
from spheregen.evaluation.ablation.sheet import load_samples, samples_sheet, save_samples
from spheregen.training.recipe import load_recipe

DISTANCE = {"key": "frechet_own", "title": "FD-own", "better": "lower"}
RATIO = {"key": "psnr", "title": "PSNR, dB", "better": "higher"}


def row(
    settings: dict[str, Any], distance: float | None, *, varies: str | None = None, error: str = ""
) -> dict[str, Any]:
    texts = {key: str(value) for key, value in settings.items()}
    figures = {} if distance is None else {"frechet_own": distance, "psnr": 2 * distance}
    run: dict[str, Any] = {"seed": 0, "run": "x", "status": "done", "figures": figures, "notes": [], "made_with": {}}
    if distance is None:
        run = {"seed": 0, "run": "x", "status": "failed", "error": error}
    return {
        "settings": settings,
        "texts": texts,
        "label": ", ".join(f"{key}={text}" for key, text in texts.items()),
        "varies": varies,
        "parameters": 1000,
        "runs": [run],
        "mean": figures,
        "deviation": dict.fromkeys(figures, 0.1),
    }


def study(rows: list[dict[str, Any]], *, one_by_one: bool = False) -> dict[str, Any]:
    keys = list(rows[0]["settings"])
    data = {"count": 5, "source": "digits", "split": "train", "image_size": 8}
    return {
        "recipe": load_recipe("debug").model_dump(mode="json"),
        "over": [
            {"key": key, "values": list(dict.fromkeys(each["texts"][key] for each in rows)), "needs_training": True}
            for key in keys
        ],
        "one_by_one": one_by_one,
        "seeds": 2,
        "columns": [DISTANCE, RATIO],
        "best": {},
        "rows": rows,
        "protocol": {"count": 5, "seed": 0, "features": {}, "reference": data, "reconstruction": data},
    }


def test_numbers_are_lines_with_a_line_for_each_other_combination() -> None:
    rows = [row({"a": a, "b": b}, a + len(b)) for a in (3, 1, 2) for b in ("x", "yy")]
    plot = _plot(study(rows), "a", DISTANCE)
    assert plot is not None
    assert [(each.name, each.kind, each.x, each.y) for each in plot.series] == [
        ("b=x", "line", (1, 2, 3), (2, 3, 4)),
        ("b=yy", "line", (1, 2, 3), (3, 4, 5)),
    ]
    assert plot.series[0].error == (0.1, 0.1, 0.1) and not plot.log_x


def test_what_sampling_does_not_change_is_drawn_once() -> None:
    rows = [row({"a": a, "sampling.steps": steps}, a) for a in (1, 2) for steps in (1, 4)]
    made = study(rows)
    made["over"][1]["needs_training"] = False
    ratio, distance = (_plot(made, "a", column) for column in (RATIO, DISTANCE))
    assert ratio is not None and [(each.name, each.x, each.y) for each in ratio.series] == [("a", (1, 2), (2, 4))]
    assert distance is not None and len(distance.series) == 2


def test_names_are_bars() -> None:
    plot = _plot(study([row({"a": a, "b": True}, len(a)) for a in ("x", "yy")]), "a", RATIO)
    assert plot is not None
    (series,) = plot.series
    assert (series.kind, series.labels, series.y) == ("bars", ("x", "yy"), (2, 4))


@pytest.mark.parametrize("value", [True, "z", None])
def test_true_and_none_are_no_numbers(value: Any) -> None:
    plot = _plot(study([row({"a": 1}, 1), row({"a": value}, 2)]), "a", DISTANCE)
    assert plot is not None and plot.series[0].kind == "bars"


def test_of_many_combinations_the_best_is_drawn() -> None:
    rows = [row({"a": a, "b": b}, a * b) for a in (1, 100) for b in range(1, FEW + 2)]
    plot = _plot(study(rows), "a", DISTANCE)
    assert plot is not None and plot.log_x
    best, every = plot.series
    assert (best.x, best.y, best.kind) == ((1, 100), (1, 100), "line")
    assert len(every.x) == len(rows) and every.kind == "points"
    highest = _plot(study(rows), "a", RATIO)
    assert highest is not None and highest.series[0].y == (2 * (FEW + 1), 200 * (FEW + 1))


def test_one_by_one_draws_the_rows_that_vary_a_key() -> None:
    rows = [
        row({"a": 1, "b": 5}, 1.0),
        row({"a": 2, "b": 5}, 2.0, varies="a"),
        row({"a": 1, "b": 6}, 3.0, varies="b"),
    ]
    plot = _plot(study(rows, one_by_one=True), "b", DISTANCE)
    assert plot is not None and (plot.series[0].x, plot.series[0].y) == ((5, 6), (1.0, 3.0))


def test_what_failed_is_not_drawn_but_told(tmp_path: Path) -> None:
    rows = [row({"a": 1}, 1.0), row({"a": 2}, None, error="lost <b>"), row({"a": 3}, 3.0)]
    plot = _plot(study(rows), "a", DISTANCE)
    assert plot is not None and plot.series[0].x == (1, 3)
    assert _plot(study(rows[:2]), "a", DISTANCE) is None
    page = study_page(study(rows), [None, None, None])
    assert "failed: lost &lt;b&gt;" in page and "data:image/png" not in page


@pytest.mark.parametrize("count", [1, 2, 5, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_come_back(tmp_path: Path, count: int, channels: int) -> None:
    samples = torch.randint(0, 256, (count, channels, 4, 4), dtype=torch.uint8)
    save_samples(tmp_path / "deep" / "samples.png", samples, {"recipe": "x"})
    assert torch.equal(load_samples(tmp_path / "deep" / "samples.png"), samples)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("values", [2, 9])
def test_sheets_of_all_forms(tmp_path: Path, one_by_one: bool, values: int) -> None:
    path = tmp_path / "samples.png"
    save_samples(path, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), {})
    rows = [
        row({"a": a, "b": b}, 1.0 + b, varies="b" if one_by_one and b else None) for a in (1, 2) for b in range(values)
    ]
    sheet = samples_sheet(study(rows, one_by_one=one_by_one), [path, None] * values)
    assert sheet.mode == "RGB" and sheet.width > 64 and sheet.height > 64
