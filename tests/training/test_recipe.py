"""Recipes: every shipped one builds, every error names key and cure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.errors import ConfigError, ModelFileError
from spheregen.training.frozen import estimate_objective
from spheregen.training.recipe import flatten, load_recipe, recipe_differences, shipped_recipes


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_recipe_builds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing was trained before
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.total_steps(50_000) >= 1
    if getattr(recipe, "teacher", None) is not None:
        with pytest.raises(ModelFileError, match="flow-cifar10-laptop"):  # which is to be trained first
            estimate_objective(recipe)
        return
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in estimate_objective(recipe).model.parameters()) > 0


def test_shipped_recipes_are_as_published() -> None:
    expected = {"digits", "cifar10", "animal-faces", "flowers102", "imagenet-l", "imagenet-xl"}
    assert expected | {"cifar10-laptop", "flowers-laptop"} <= shipped_recipes().keys()
    recipe = load_recipe("cifar10")
    assert recipe.total_steps(50_000) == -(-5000 * 50_000 // 256)
    assert recipe.warmup_steps(50_000) == round(10 * 50_000 / 256)
    assert not load_recipe("digits").data.flips  # they are never mirrored


def test_overrides_reach_the_recipe_and_numbers_may_be_written_as_people_do() -> None:
    recipe = load_recipe("debug", ["optimizer.lr=3e-4", "train.epochs=2", "model.compression=1.5", "data.flips=true"])
    assert recipe.optimizer.lr == 3e-4
    assert recipe.train.steps is None and recipe.train.epochs == 2  # the twin of the recipe gives way
    assert recipe.model.latent_channels is None and recipe.model.compression == 1.5
    assert recipe.data.flips


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.patchsize=2"], "unknown key model.patchsize; did you mean 'patch_size'"),
        (["trian.steps=3"], "unknown key trian; did you mean 'train'"),
        (["train.stesp=3"], "unknown key train.stesp; did you mean 'steps'"),
        (["model.patch_size=3"], "patch of 3 px does not divide"),
        (["model.encoder=bsae"], "did you mean 'base'"),
        (["model.encoder={width: 64, depth: 1, heads: 5}"], "5 heads do not divide"),
        (["train.steps=0"], "train.steps: input should be greater than or equal to 1"),
        (["train.micro_batch=0"], r"train\.micro_batch: input should be greater than or equal to 1 \(not 0\)"),
        (["sampling.schedule=fixd"], "did you mean 'fixed'"),
        (["loss.pixel_reconstruction=-1"], "not negative"),
        (["noise.hard_probability=2"], r"lies in \[0, 1\]"),
        (["init=''"], "init: string should have at least 1 character"),
        (["train.steps"], "takes key=value"),
        (["train.steps.more=1"], "steps is a single value"),
        (["train.steps=0", "optimizer.lr=-1", "nonsense=1"], r"unknown key nonsense|optimizer\.lr.*train\.steps"),
    ],
)
def test_errors_are_one_line_that_names_the_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("debug", overrides)
    assert "\n" not in str(caught.value)
    assert "input should be a valid string" not in str(caught.value)


def test_unknown_recipe_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: 2")
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        load_recipe(broken)
    assert "\n" not in str(caught.value)
    broken.write_text("- just\n- a list\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load_recipe(broken)


def test_differences_ignore_what_does_not_change_weights() -> None:
    old = load_recipe("debug").model_dump(mode="json")
    new = load_recipe("debug", ["train.log_every=1", "train.keep=9", "sampling.steps=2"]).model_dump(mode="json")
    assert recipe_differences(old, new) == []
    new = load_recipe("debug", ["train.ema=0.5"]).model_dump(mode="json")
    assert recipe_differences(old, new) == ["train.ema: 0.9 -> 0.5"]
    known = set().union(*(flatten(load_recipe(name).model_dump(mode="json")) for name in shipped_recipes()))
    assert known >= set().union(*(type(load_recipe(name)).free_to_change for name in shipped_recipes()))


def test_a_run_that_is_older_than_a_setting_had_its_default() -> None:
    now = load_recipe("debug").model_dump(mode="json")
    old = load_recipe("debug").model_dump(mode="json")
    for section, key in (("loss", "uniformity"), ("loss", "uniformity_kind"), ("model", "prior")):
        del old[section][key]
    assert recipe_differences(old, now) == []
    changed = load_recipe("debug", ["model.prior=gaussian"]).model_dump(mode="json")
    assert recipe_differences(old, changed) == ["model.prior: sphere -> gaussian"]
    newer = {**now, "future": {"setting": 1}}  # of a later version: compared as it is
    assert recipe_differences(newer, now) == ["future.setting: 1 -> None"]
