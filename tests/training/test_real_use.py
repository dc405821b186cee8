"""What users meet when they start runs: unclear recipes, longer runs, models behind models, broken weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.folders.model_folder import load_any_model
from spheregen.pixels import read_image
from spheregen.progress import Pace
from spheregen.training.recipe import check_recipe, load_recipe, shipped_recipes
from tests.training.runs import run, weights

CONSTANT = "optimizer.schedule=constant"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (shipped_recipes()["debug"] + "\ntrain:\n  steps: 7\n", "train"),
        ("train: {steps: 1, batch_size: 2, steps: 3}", "steps"),
        ("model: &m\n  a: [*m]", "alias"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
            "alias",
        ),
        ("[" * 5000, "YAML"),
        ("- train", "mapping"),
        ("", "mapping"),
        ("name: 2001-99-99", "YAML"),
    ],
)
def test_a_recipe_that_says_two_things_is_one_line(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value) and "r.yaml" in str(caught.value)


def test_anchors_of_a_recipe_are_fine(tmp_path: Path) -> None:
    text = shipped_recipes()["debug"]
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml", ["name=debug"]) == load_recipe("debug")


def test_a_constant_run_made_longer_is_the_longer_run(tmp_path: Path) -> None:
    run(tmp_path / "a", CONSTANT, "train.steps=10")
    run(tmp_path / "a", CONSTANT, "train.steps=20")
    run(tmp_path / "b", CONSTANT, "train.steps=20")
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(SphereGenError, match="20 steps are done"):
        run(tmp_path / "a", CONSTANT, "train.steps=5")


def test_another_run_says_how_it_trains_on(whole: Path) -> None:
    with pytest.raises(SphereGenError, match=r"optimizer\.schedule.*--init"):
        run(whole, "train.steps=100")


def test_a_refiner_takes_the_shape_of_the_model_in_front(whole: Path) -> None:
    how = [f"source={whole}", "data.source=digits"]
    model = load_recipe("flow-cifar10-laptop", how).model
    assert (model.image_size, model.image_channels, model.num_classes, model.patch) == (8, 1, 10, 4)
    assert load_recipe("flow-cifar10-laptop", [*how, "model.num_classes=0"]).model.num_classes == 0
    with pytest.raises(SphereGenError, match=r"model\.image_size"):
        check_recipe(load_recipe("flow-cifar10-laptop", [*how, "model.image_size=32"]))


def test_a_denoiser_takes_the_shape_of_its_latents(cache: Path) -> None:
    model = load_recipe("sle-cifar10-laptop", data=str(cache)).model
    plan = json.loads((cache / "index.json").read_text())["plan"] if (cache / "index.json").exists() else None
    assert (model.image_size, model.image_channels, model.num_classes) == (8, 1, 10)
    assert plan is None or [model.tokens, model.channels] == list(plan["latent_shape"])


@pytest.mark.parametrize(
    "how", [["data.source=nosuch"], ["init=nosuch"], ["model.num_classes=3"], ["init=digits", "kind=representation"]]
)
def test_a_dry_run_finds_what_is_missing(how: list[str]) -> None:
    with pytest.raises(SphereGenError):
        check_recipe(load_recipe("debug", how))


def test_data_beside_the_recipe_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "photos").mkdir(parents=True)
    (tmp_path / "here" / "r.yaml").write_text(shipped_recipes()["debug"].replace("source: digits", "source: photos"))
    monkeypatch.chdir(tmp_path)
    source = load_recipe("here/r.yaml").data.source
    assert source is not None and (tmp_path / source).samefile(tmp_path / "here" / "photos")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "m"
    shutil.copytree(whole, broken)
    tensors = load_file(broken / "model.safetensors")
    name = max(tensors, key=lambda each: tensors[each].numel())
    tensors[name].view(-1)[3] = value
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ModelFileError, match="not finite"):
        load_any_model(broken)
    with pytest.raises(ModelFileError, match="not finite"):
        run(tmp_path / "run", f"init={broken}")
    assert not (tmp_path / "run").exists()


def test_the_pace_is_a_mean_that_pauses_do_not_spoil() -> None:
    pace, now = Pace(0), 100.0
    for step in range(1, 101):
        now += 3600 if step in (1, 50) else 0.1
        pace.add(step, now)
    assert 0.1 <= pace.seconds < 0.25


def test_previews_have_captions(whole: Path) -> None:
    sheet = read_image(sorted((whole / "previews").glob("*.png"))[-1])
    assert sheet.width > 10 * 50 + 2 and sheet.mode == "RGB"
