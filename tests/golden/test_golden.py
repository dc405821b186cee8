"""The code of today trains, continues, loads and samples what version 0.1.0 did before its rebuild."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden import cases

CURVES = json.loads(cases.CURVES.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _one_thread(_two_threads: None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_curve(ours: list[dict[str, float]], name: str) -> None:
    assert len(ours) == len(CURVES[name])
    for step, (mine, theirs) in enumerate(zip(ours, CURVES[name], strict=True), start=1):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-8), f"step {step}"


@pytest.mark.parametrize("recipe", cases.RECIPES)
def test_a_recipe_has_the_same_loss_curve(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if recipe == "sle-debug":
        cases.encode_digits("cache", cases.CACHES["cache"])
    assert_same_curve(cases.train(recipe, cases.RECIPES[recipe], "run"), recipe)


@pytest.mark.parametrize("name", cases.RUNNING)
def test_a_run_of_the_version_before_continues(name: str, tmp_path: Path) -> None:
    shutil.copytree(cases.RUNS / name, tmp_path / "run")
    recipe, settings = cases.RUNNING[name]
    assert_same_curve(cases.train(recipe, settings, tmp_path / "run"), f"{name} continued")


@pytest.mark.parametrize("name", cases.FOLDERS)
def test_a_model_folder_of_the_version_before_makes_the_same_images(name: str) -> None:
    made, expected = cases.images_of(cases.MODELS / name), load_file(cases.MODELS / name / "images.safetensors")
    assert made.keys() == expected.keys()
    for how, images in expected.items():
        torch.testing.assert_close(made[how], images, atol=2e-5, rtol=2e-5, msg=lambda text, how=how: f"{how}: {text}")


def test_public_names() -> None:
    """What changes on purpose is written anew by `python -m tests.golden.make_golden --names`."""
    assert cases.public_names() == json.loads(cases.NAMES.read_text(encoding="utf-8"))
