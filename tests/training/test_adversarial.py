"""A critic beside a Sphere Encoder of any network: it learns along, is resumed exactly, and stays out of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

import spheregen as sg
from spheregen.errors import ConfigError
from tests.training.runs import assert_same_run, interrupted, log, run

SETTINGS = (
    "train.steps=12",
    "train.log_every=1",
    "train.checkpoint_every=4",
    "train.preview_every=0",
    "loss.adversarial=0.3",
    "loss.adversarial_start=0.5",
    "loss.critic_lead=0.25",
    "loss.critic_width=4",
)


@pytest.mark.parametrize("recipe", ["debug", "conv-debug"])
def test_a_critic_learns_along(recipe: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *SETTINGS, recipe=recipe)
    entries = log(whole)
    assert [bool(entry["critic"]) for entry in entries] == [step >= 3 for step in range(12)]
    assert [bool(entry["adversarial"]) for entry in entries] == [step >= 6 for step in range(12)]
    with safe_open(whole / "model.safetensors", "pt") as file:
        assert {name.partition(".")[0] for name in file.keys()} == {"encoder", "decoder"}  # noqa: SIM118
    assert sg.load(str(whole)).image_shape
    again = interrupted(tmp_path / "again", *SETTINGS, recipe=recipe, stop=7)
    assert_same_run(run(again, *SETTINGS, recipe=recipe), whole)


def test_a_critic_may_judge_features(tmp_path: Path) -> None:
    run(tmp_path / "run", *SETTINGS, "loss.critic_features=true", "perceptual=builtin", "train.steps=8")
    with pytest.raises(ConfigError, match="critic_features"):
        run(tmp_path / "none", *SETTINGS, "loss.critic_features=true", "perceptual=none")


def test_an_autoencoder_that_is_trained_along_has_no_critic(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source"):
        run(tmp_path / "run", "autoencoder_loss.adversarial=0.1", recipe="flow-debug")
