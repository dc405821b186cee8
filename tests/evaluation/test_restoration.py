"""Restoration measured beside simple means, and settings that are found by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import spheregen as sg
from spheregen import restoration as r
from spheregen.errors import ConfigError
from spheregen.evaluation.restoration.baselines import plug_and_play, total_variation
from spheregen.evaluation.restoration.comparison import Measure, evaluate_restoration
from spheregen.evaluation.restoration.projection import projection_curve
from spheregen.evaluation.restoration.search import tune_restoration_folder
from spheregen.evaluation.restoration.section import restoration_section, restoration_sheet
from spheregen.evaluation.restoration.tasks import SP3, TASKS, choose_tasks, tasks_of
from spheregen.evaluation.tuning import MARGIN
from spheregen.folders.model_folder import load_model
from spheregen.measure.features import load_extractors
from tests.factories import images_of, tiny_model_folder, tiny_pipeline


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model_folder(tmp_path / "tiny")


def test_tasks_are_measured_beside_simple_means(model: Path) -> None:
    told: list[dict[str, object]] = []
    names = ["denoise", "superres", "dejpeg"]
    found = evaluate_restoration(str(model), "digits", names, count=4, device="cpu", told=told.append)
    methods = [(row["task"], row["method"]) for row in found["rows"]]
    assert told == found["rows"] and methods[-1] == ("dejpeg", "model")
    assert {("denoise", "median"), ("superres", "plug-and-play"), ("dejpeg", "as it is")} <= {*methods}
    assert all(row["psnr"] > 0 and row.get("residual", 0) >= 0 for row in found["rows"])
    assert all(("residual" in row) == (row["task"] != "dejpeg") for row in found["rows"])
    assert all(("step_cost" in row) == (row["method"] == "model") for row in found["rows"])
    assert found["protocol"]["noise"] == {"denoise": 0.2, "superres": 0.05, "dejpeg": 0.0}


def test_tasks_are_those_of_a_protocol_and_of_the_colours() -> None:
    assert choose_tasks(["all"], 3) == tuple(TASKS) and "decolour" not in choose_tasks(["all"], 1)
    assert choose_tasks(["all"], 1, tasks_of("sp3")) == tuple(SP3)
    for names, channels, known, named in (
        (["sharpen"], 3, TASKS, "sharpen"),
        (["dejpeg"], 3, SP3, "dejpeg"),
        (["decolour"], 1, TASKS, "grey"),
    ):
        with pytest.raises(ConfigError, match=named):
            choose_tasks(names, channels, known)
    with pytest.raises(ConfigError, match=r"sp4.*sp3"):
        tasks_of("sp4")


def test_total_variation_takes_noise_away() -> None:
    clean = torch.zeros(1, 1, 16, 16)
    clean[..., 8:] = 1
    y = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert (total_variation(y, 0.2) - clean).square().mean() < 0.3 * (y - clean).square().mean()
    hidden = r.Mask(r.random_mask(16).float())  # in a loop with data steps it fills holes as well
    start, filled = hidden.init(hidden.A(clean)), plug_and_play(hidden.A(clean), hidden, 0.01)
    assert (filled - clean).square().mean() < 0.8 * (start - clean).square().mean()


# settings -------------------------------------------------------------------------------------------------------------


def test_the_best_settings_of_a_task_become_its_defaults(model: Path) -> None:
    before = load_model(model)
    found = tune_restoration_folder(model, "digits", ["denoise", "inpaint"], seconds=1e6, count=6, device="cpu")
    assert json.loads((model / "restoration.json").read_text(encoding="utf-8")) == found
    loaded = load_model(model)
    assert loaded.fingerprint == before.fingerprint and loaded.info.sampling == before.info.sampling
    assert len(loaded.info.restoration["spectrum"]) == r.BINS
    pipe = sg.Pipeline.from_pretrained(model, device="cpu")
    for task, operator in (("denoise", r.Denoise()), ("inpaint", r.Mask(torch.ones(1, 1, 8, 8)))):
        table = found["tasks"][task]
        scores = [row["score"] for row in table["tried"]]
        assert len(scores) >= 8 and table["figures"]["score"] <= min(scores) / MARGIN**2
        used = pipe.restore(images_of(2)[:, :1], operator, noise=0.1)
        assert {name: used.settings[name] for name in table["chosen"]} == table["chosen"]
        told = pipe.restore(images_of(2)[:, :1], operator, noise=0.1, angle=7, steps=3).settings
        assert told["angle"] == 7 and told["steps"] == 3 and told["schedule"] == table["chosen"]["schedule"]
    assert found["tasks"]["inpaint"]["measured"]["noise"] == {"box": 0.05, "brush": 0.05, "random": 0.01}
    # another task later leaves these as they are; without time the general defaults are all that is tried
    later = tune_restoration_folder(model, "digits", ["dejpeg"], seconds=1e-9, count=6, device="cpu")
    assert later["tasks"]["denoise"] == found["tasks"]["denoise"] and len(later["tasks"]["dejpeg"]["tried"]) == 1
    assert {*load_model(model).info.restoration["tasks"]} == {"denoise", "inpaint", "dejpeg"}


@pytest.mark.parametrize("tasks", [5, {"denoise": 5}, {"denoise": {"angle": "wide"}}, {"denoise": {"weights": 1}}])
def test_impossible_records_are_refused(model: Path, tasks: Any) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "restoration": {"tasks": tasks}}), encoding="utf-8")
    pipe = sg.Pipeline.from_pretrained(model, device="cpu")
    with pytest.raises(ConfigError, match=r"config\.json"):
        pipe.restore(images_of(1)[:, :1], r.Denoise())


# the report -----------------------------------------------------------------------------------------------------------


def test_passes_of_the_projection_curve_are_reconstructions() -> None:
    pipe, x = tiny_pipeline(), images_of(5)
    measure = Measure(load_extractors(["own"], "cpu")["own"], x)
    found = projection_curve(pipe, x, measure, angles=(0.0, 40.0), passes=(1, 2))
    once = pipe.reconstruct(x)
    for place, images in enumerate((once, pipe.reconstruct(once))):
        assert found["frechet"][0][place] == pytest.approx(measure.frechet(measure.features(images)), rel=1e-2)
    assert found["frechet"][1][0] != pytest.approx(found["frechet"][0][0], rel=1e-3)


def test_a_report_tells_where_a_model_is_no_good_prior() -> None:
    def row(method: str, psnr: float, frechet: float) -> dict[str, Any]:
        return {"task": "denoise", "method": method, "psnr": psnr, "frechet": frechet, "residual": 1.3}

    curve = {"angles": [0.0, 30.0], "passes": [1, 20], "frechet": [[2.0, 3.0], [2.0, 9.0]], "psnr": [[20.0, 19.0]] * 2}
    found: dict[str, Any] = {"count": 4, "noise_scale": "images in [-1, 1]", "projection": curve}
    sheet = restoration_sheet(tiny_pipeline(), images_of(2), ["denoise", "decolour"])
    bad = restoration_section({**found, "rows": [row("median", 25, 1), row("model", 23, 2)]}, sheet)
    assert [text.split(":")[0] for text in bad.warnings[:3]] == ["denoise"] * 3
    assert len(bad.warnings) == 4 and "30 degrees" in bad.warnings[3]
    good = {**row("model", 25, 0.5), "residual": 0.9}
    assert not restoration_section({**found, "projection": curve | {"frechet": [[2.0, 3.0]] * 2}, "rows": [
        row("median", 25, 1), good]}, sheet).warnings  # fmt: skip
