"""`spheregen demo`: what a newcomer's first ten minutes leave, here after two steps of training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from spheregen.cli import demo as command
from tests.cli.conftest import Run


def test_the_demo_leaves_a_model_sheets_and_scores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PER_CLASS", 2)
    settings = ["--set", "train.steps=2", "--set", "train.batch_size=32", "--set", "train.preview_every=0"]
    found = run("demo", *settings, "--out", "run", "--json").json
    assert found["scores"].keys() == {"1", "2"} and found["samples"] == 124 and found["training_steps"] == 2
    for score in found["scores"].values():
        assert score["relative_accuracy"] == score["accuracy"] / found["classifier_accuracy_on_real_letters"]
        assert score["deviation_ratio"] > 0 < score["distance_ratio"]
    sizes = {}
    for name in ("samples", "typefaces", "styles", "between"):
        with Image.open(Path("run") / f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["samples"] == sizes["typefaces"], "eight rows of 31 letters"
    assert json.loads(Path("run/report.json").read_text(encoding="utf-8"))["samples"] == 124
    text = Path("run/report.md").read_text(encoding="utf-8")
    assert all(f"]({name}.png)" in text for name in sizes)
    made = run("sample", "run", "--labels", "A,b", "-n", "2", "--out", "two.png")
    assert made.code == 0, made.err


def test_the_demo_refuses_what_is_no_sheet_of_letters(run: Run) -> None:
    run("demo", "--set", "model.image_size=16", "--out", "run").fails("spheregen train conv-letters")
    assert not Path("run").exists()


def test_the_demo_trains_as_long_as_it_is_told_and_goes_on_as_it_began(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PER_CLASS", 1)
    monkeypatch.setattr(command, "MOST_STEPS", 3)
    settings = ["--set", "train.batch_size=32", "--set", "train.preview_every=0", "--out", "run", "--json"]
    assert run("demo", *settings).json["training_steps"] == 3, "no more than the most, however fast the machine is"
    monkeypatch.setattr(command, "MOST_STEPS", 5)
    again = run("demo", "--minutes", "2", *settings)
    assert again.json["training_steps"] == 3 and "--minutes" in again.err, "the run that is there"
    length = ["--set", "train={steps: 2, batch_size: 32, preview_every: 0}", "--out", "short", "--json"]
    assert run("demo", *length).json["training_steps"] == 2
    run("demo", "--minutes", "0", "--out", "other").fails("--minutes")
