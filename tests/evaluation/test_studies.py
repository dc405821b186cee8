"""A whole report from names: every study leaves its figures in the result and its section on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spheregen.data import open_source
from spheregen.errors import ConfigError
from spheregen.evaluation import studies as module
from spheregen.evaluation.classifier import CLASSIFIER
from spheregen.evaluation.curves import parse_curve
from spheregen.evaluation.evaluator import EvaluationOptions
from spheregen.evaluation.request import Request, run
from spheregen.evaluation.restoration import comparison
from spheregen.evaluation.restoration import section as restoration
from spheregen.evaluation.restoration.tasks import TASKS
from spheregen.evaluation.sphere import study as sphere
from spheregen.evaluation.studies import choose_studies
from spheregen.measure.features import classifier
from tests.evaluation.stubs import POOLED

STUDIES = ("reconstruction", "curves", "classes", "originality", "sphere", "restoration")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    for split, count in (("train", 60), ("test", 30)):
        source = open_source("digits", split=split)
        for number in range(count):
            place = folder / "data" / split / str(int(source.labels[number]))  # type: ignore[index]
            place.mkdir(parents=True, exist_ok=True)
            source.read(number).save(place / f"{number}.png")
    options = EvaluationOptions(
        count=40, curve_count=4, curves=(parse_curve("steps=1,2"),), metrics=("class_accuracy", "frechet")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPHERE_IMAGES", 40)
        patch.setattr(restoration, "IMAGES", 4)
        patch.setattr(comparison, "TIMED", 2)
        patch.setattr(classifier, "SEEN", 6400)
        for name in ("TURNED", "LOOPED", "RANDOM", "UNRELATED"):
            patch.setattr(sphere, name, 16)
        patch.setattr(module, "sampling_speed", lambda _, each, **__: [{"images_per_second": 9.0} for _ in each])
        data = str(folder / "data")
        result = run(
            Request(
                model="digits",
                data=data,
                report=folder,
                options=options,
                studies=STUDIES,
                features=(POOLED, CLASSIFIER),
                device="cpu",
            )
        )
    assert result is not None
    return folder, result


def test_the_result_holds_every_study(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    assert set(STUDIES) <= set(result) and not [note for note in result["notes"] if "left out" in note]
    classified = result["metrics"][CLASSIFIER]
    assert classified["features"]["accuracy"] > 0.5, "of 60 digits that it learned from"
    figures = classified["figures"]
    assert figures["class_accuracy"] == pytest.approx(
        figures["class_accuracy_of_real"] * classified["features"]["accuracy"]
    )
    assert figures["class_accuracy"] == result["classes"]["accuracy"] > 0.5, "the bundled digits are digits"
    assert (
        "class_accuracy" in result["curves"][0]["points"][0]["figures"][CLASSIFIER]
        and "class accuracy 0." in result["line"]
    )
    saved = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(result))
    assert result["metrics"][POOLED]["held_out"]["frechet"] > 0 and result["reconstruction"]["psnr"] > 10
    assert [point["value"] for point in result["curves"][0]["points"]] == [1, 2]
    assert result["classes"]["features"] == POOLED and 0 <= result["classes"]["accuracy"] <= 1
    assert result["originality"]["training_images"] == 60
    assert result["sphere"]["latents"]["own class"]["count"] == 40 and result["sphere"]["warnings"]
    restored = result["restoration"]
    assert {row["task"] for row in restored["rows"]} == {*TASKS} - {"decolour"} and restored["count"] == 4
    assert len(restored["projection"]["frechet"]) == len(restored["projection"]["angles"])


def test_the_page_holds_every_section(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    page = (folder / "index.html").read_text(encoding="utf-8")
    keys = ("summary", "metrics", "curves", "samples", "classes", "originality", "sphere", "restoration", "protocol")
    for key in (*keys, "recipe"):
        assert f'<section id="{key}"' in page
    assert result["line"][:40] in page and page.count("data:image/png;base64,") == 6


def test_studies_are_chosen_by_name() -> None:
    assert choose_studies(["sphere", "curves"]) == ("curves", "sphere")
    assert choose_studies(None) == module.STUDIES and choose_studies(["none"]) == ()
    with pytest.raises(ConfigError, match="sphere"):
        choose_studies(["sphered"])
