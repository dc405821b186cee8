"""`spheregen train --init`: fine-tuning, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from spheregen.model_folder import load_model
from tests.cli.conftest import Run
from tests.cli.test_commands import assert_one_line_error

SHORT = ("--set", "train.steps=2", "--quiet", "--device", "cpu")


def test_train_from_a_model(run: Run, model: Path) -> None:
    result = run("train", "debug", "--init", model, "--out", "tuned", "--set", "model.num_classes=0", *SHORT)
    assert result.code == 0, result.err
    assert f"from {model}: kept " in result.err
    assert "the null class folded in" in result.err
    info = load_model("tuned").info
    assert info.provenance["base_model"].startswith(str(model))
    assert json.loads(Path("tuned/recipe.json").read_text())["init"] == str(model)
    assert str(model) in Path("tuned/README.md").read_text()
    again = run("train", "debug", "--init", model, "--out", "tuned", "--set", "model.num_classes=0", *SHORT, "--json")
    assert json.loads(again.out)["steps_done_now"] == 0
    without = run("train", "debug", "--out", "tuned", "--set", "model.num_classes=0", *SHORT)
    assert_one_line_error(without, f"init: {model} -> None")


def test_the_option_is_short_for_the_key(run: Run) -> None:
    option, key = (
        run("train", "debug", "--init", "base", "--dry-run"),
        run("train", "debug", "--set", "init=base", "--dry-run"),
    )
    assert option.out == key.out
    assert "\ninit: base\n" in option.out
    assert "\ninit: null\n" in run("train", "debug", "--dry-run").out
    assert run("info", "debug", "--set", "init=base").code == 0
    Path("tuned.yaml").write_text(option.out)
    assert json.loads(run("train", "tuned.yaml", "--dry-run", "--json").out)["init"] == "base"
    assert run("info", "tuned.yaml", "--json").code == 0


def test_a_model_that_is_not_there_is_one_line(run: Run, model: Path) -> None:
    assert_one_line_error(run("train", "debug", "--init", "runs/nothing-here/at-all", *SHORT), "no model folder at")
    assert_one_line_error(run("train", "debug", "--init", "", *SHORT), "init")
    assert_one_line_error(run("train", "debug", "--init", model / "config.json", *SHORT), "is a file")
    assert not list(Path().iterdir())
