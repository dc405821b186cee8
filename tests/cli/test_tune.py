"""`spheregen tune` as a user types it, and what long trainings do by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spheregen.cli import train as command
from spheregen.folders.model_folder import load_model
from tests.cli.conftest import Run
from tests.training.runs import run as trained

SHORT = ("train.steps=30", "train.preview_every=0")


def test_the_best_of_what_was_measured_becomes_the_default(run: Run) -> None:
    model = trained(Path("model"), *SHORT, recipe="conv-debug")
    weights, card = load_model(model).fingerprint, (model / "README.md").read_text(encoding="utf-8")
    found = run("tune", "model", "--data", "digits", "--seconds", "100000", "-n", "20", "--json").json
    tried = found["tried"]
    assert len(tried) >= 12 and {row["prior"] for row in tried} == {"sphere", "fitted"}
    assert all(row["score"] > 0 and 0 <= row["class_accuracy"] <= 1 for row in tried)
    own, best = tried[0]["score"], found["figures"]["score"]
    assert best <= own and best <= min(row["score"] for row in tried) / 0.9
    assert found["compared_with"] == "397 images of digits, split test"
    loaded = load_model(model)
    assert loaded.fingerprint == weights and loaded.model.fitted is not None
    assert {name: loaded.info.sampling[name] for name in found["chosen"]} == found["chosen"]
    assert json.loads((model / "tuning.json").read_text(encoding="utf-8")) == found
    steps = found["chosen"]["steps"]
    assert (model / "README.md").read_text(encoding="utf-8") == card.replace("steps=4", f"steps={steps}")
    again = run("tune", "model", "--data", "digits", "--seconds", "0.001", "-n", "20", "--json").json
    assert [again["chosen"]] == [{name: row[name] for name in again["chosen"]} for row in again["tried"]]


def test_the_angle_that_a_model_is_told_is_tried_too(run: Run) -> None:
    trained(Path("model"), "train.steps=2", "train.preview_every=0", "train.fit_prior=false", recipe="se2-debug")
    found = run("tune", "model", "--data", "digits", "--seconds", "100000", "-n", "10")
    assert found.code == 0, found.err
    header, *rows = found.out.splitlines()
    place = header.index("start_angle")
    assert {"", "73", "76"} <= {row[place : place + 4].strip() for row in rows}


def test_settings_of_restoration_are_chosen_by_task(run: Run) -> None:
    trained(Path("model"), *SHORT, recipe="conv-debug")
    words = ("tune", "model", "--data", "digits", "--seconds", "0.001", "-n", "4")
    assert "dejpeg" in run(*words, "--restoration", "denoise,dejpeg").out
    found = json.loads(Path("model/restoration.json").read_text(encoding="utf-8"))
    recorded = load_model(Path("model")).info.restoration["tasks"]
    assert recorded == {task: table["chosen"] for task, table in found["tasks"].items()}
    run(*words, "--restoration", "sharpen").fails("sharpen", "denoise")


def test_a_card_that_somebody_edited_stays(run: Run) -> None:
    model = trained(Path("model"), *SHORT, recipe="conv-debug")
    (model / "README.md").write_text("mine", encoding="utf-8")
    assert run("tune", "model", "--data", "digits", "--seconds", "0.001", "-n", "20").code == 0
    assert (model / "README.md").read_text(encoding="utf-8") == "mine"


def test_long_trainings_tune_themselves_unless_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LONG_RUN", 0)
    for name, more in (("yes", ()), ("no", ("--set", "train.tune=false"))):
        settings = [part for each in SHORT for part in ("--set", each)]
        assert run("train", "conv-debug", "--out", name, *settings, *more).code == 0
    assert (Path() / "yes" / "tuning.json").is_file() and not (Path() / "no" / "tuning.json").exists()


def test_a_model_of_a_schedule_of_its_own_or_without_classes_is_tuned_too(run: Run) -> None:
    for name, more in (("own", "sampling.steps=2"), ("plain", "model.num_classes=0")):
        trained(Path(name), *SHORT, more, recipe="conv-debug")
        if name == "own":
            config = json.loads(Path("own/config.json").read_text(encoding="utf-8"))
            config["sampling"]["schedule"] = [0.4]
            Path("own/config.json").write_text(json.dumps(config), encoding="utf-8")
        found = run("tune", name, "--data", "digits", "--seconds", "100000", "-n", "20", "--json").json
        assert ("class_accuracy" in found["figures"]) == (name == "own")
        assert len(found["tried"]) > 6 and found["samples"] == 20


def test_what_cannot_be_tuned_is_one_line(run: Run) -> None:
    run("tune", "digits", "--data", "digits").fails("save_pretrained")
    model = trained(Path("model"), *SHORT, recipe="conv-debug")
    run("tune", str(model), "--data", "digits", "--seconds", "0").fails("--seconds")
    run("tune", str(model), "--data", "digits", "-n", "1").fails("--count 1")
    run("tune", str(model), "--data", "nowhere").fails("nowhere")
