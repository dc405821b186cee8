"""What all commands share: options, help, completion, errors in one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import spheregen
from spheregen.cli import main
from spheregen.cli.options import Everywhere, everywhere
from tests.cli.conftest import Run, contents
from tests.factories import image_folder

COMMANDS: dict[str, Any] = main.command().commands
NAMES = {
    *("train", "sample", "reconstruct", "edit", "interpolate", "crossover", "vary", "inpaint", "upscale", "refine"),
    "restore",
    *("evaluate", "compare", "sweep", "ablate", "plot", "stats", "suggest", "encode", "info", "convert", "models"),
    *("bench", "recipes", "demo", "fit-prior", "tune", "export", "serve", "app"),
}
LATER = {"fit-prior": 8, "tune": 8, "restore": 15, "export": 8, "serve": 15, "app": 8}
"""Commands that came after the bound on the parameters of all others, each with its own."""


def test_commands_and_the_number_of_their_parameters() -> None:
    assert COMMANDS.keys() == NAMES
    assert sum(len(command.params) for name, command in COMMANDS.items() if name not in LATER) <= 201
    assert all(len(COMMANDS[name].params) <= most for name, most in LATER.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_examples_that_parse(run: Run, name: str) -> None:
    shown = run(name, "--help")
    assert shown.code == 0 and "Examples:" in shown.out and "--quiet" in shown.out
    command = COMMANDS[name]
    parent = main.command().make_context("spheregen", [name, "--help"], resilient_parsing=True)
    for line in command.epilog.splitlines()[1:]:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["spheregen", name]
        command.make_context(name, words[2:], parent=parent)
    vars(everywhere).update(vars(Everywhere()))


def test_commands_are_listed_in_groups(run: Run) -> None:
    text = run().out
    assert all(group in text for group in main.GROUPS) and all(name in text for name in COMMANDS)
    assert run("--version").out.strip() == spheregen.__version__


@pytest.mark.parametrize(
    ("line", "found"),
    [("sample di", "digits"), ("train cifar10-l", "cifar10-laptop"), ("edit digits x --lab", "--labels"),
     ("sample digits --set sch", "schedule="), ("info --js", "--json"), ("up", "upscale")],
)  # fmt: skip
def test_a_shell_completes_names_and_options(run: Run, monkeypatch: pytest.MonkeyPatch, line: str, found: str) -> None:
    monkeypatch.setenv("_SPHEREGEN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"spheregen {line}")
    monkeypatch.setenv("COMP_CWORD", str(len(line.split())))
    assert found in run().out.split()


def test_shared_options_stand_before_a_command_or_behind_it(run: Run) -> None:
    assert run("--json", "recipes").json == run("recipes", "--json").json
    for words in (["--device", "cuda:9", "sample", "digits"], ["sample", "digits", "--device", "cuda:9"]):
        run(*words).fails("cuda:9")
    for words in (["sample", "nowhere", "--debug"], ["--debug", "sample", "nowhere"]):
        with pytest.raises(spheregen.SphereGenError):
            run(*words)


def test_quiet_is_quiet(run: Run, model: Path) -> None:
    assert "made on cpu" in run("sample", model, "-n", 2).err
    for words in (["-q", "sample", model, "-n", 2], ["sample", model, "-qn", 2]):
        result = run(*words)
        assert (result.code, result.out, result.err) == (0, "", "")


SHORT = ("--set", "train.steps=2", "--device", "cpu")


def test_an_option_that_set_has_is_named(run: Run) -> None:
    run("edit", "digits", "x.png", "--guidance-at", "pixel").fails("--guidance-at", "--set guidance_at=")


BAD: list[tuple[list[str], str]] = [
    (["edit"], "MODEL"),
    (["smaple"], "smaple"),
    (["sample", "digits", "--ste", "4"], "--steps"),
    (["sample", "digits", "--steps", "four"], "--steps"),
    (["sample", "digits", "--set", "schedule"], "NAME=VALUE"),
    (["sample", "digits", "--set", "shedule=decay"], "did you mean 'schedule'"),
    (["train", "digitz"], "did you mean 'digits'"),
    (["train", "debug", "--set", "train.stepz=3"], "did you mean 'steps'"),
    (["train", "debug", "--data", "missing"], "missing"),
    (["train", "debug", "--data", "faulty"], "broken.jpg"),
    (["train", "debug", "--out", "file/below"], "file is a file"),
    (["train", "cifar10"], "--data"),
    (["train", "debug", "--init", "runs/nothing/at-all"], "no model folder"),
    (["recipes", "digitz"], "did you mean"),
]


def test_mistakes_are_one_line_and_leave_nothing(run: Run) -> None:
    Path("file").write_text("precious")
    image_folder(Path("faulty"), classes=10, per_class=1, mode="L")
    Path("faulty/3/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    before = contents()
    for arguments, named in BAD:
        run(*arguments).fails(named)
        assert contents() == before


# train, recipes -------------------------------------------------------------------------------------------------------


def test_recipes_are_listed_and_printed(run: Run) -> None:
    listed = run("recipes", "--json").json
    assert {"digits", "cifar10", "imagenet-xl"} <= {recipe["name"] for recipe in listed}
    text = run("recipes").out
    assert all(recipe["description"] in text for recipe in listed)
    Path("own.yaml").write_text(run("recipes", "digits").out)
    answer = run("train", "own.yaml", "--dry-run", "--set", "optimizer.lr=5e-4", "--json").json
    assert answer["optimizer"]["lr"] == 5e-4
    assert contents().keys() == {"own.yaml"}


def test_train_writes_a_model_and_continues(run: Run) -> None:
    first = run("train", "debug", *SHORT, "--out", "here")
    assert first.code == 0 and "images/s" in first.err and "spheregen sample here" in first.err
    assert run("train", "debug", *SHORT, "--out", "here", "--json").json["steps_done_now"] == 0
    changed = run("train", "debug", "--set", "train.steps=5", "--out", "here")
    changed.fails("train.steps: 2 -> 5")


def test_train_from_a_model(run: Run, model: Path) -> None:
    words = ["train", "debug", "--set", "model.num_classes=0", *SHORT, "--out", "tuned"]
    result = run(*words, "--init", model)
    assert result.code == 0, result.err
    assert f"from {model}: kept " in result.err
    assert run(*words, "--init", model, "--json").json["steps_done_now"] == 0
    run(*words).fails(f"init: {model} -> None")
    option, key = (run("train", "debug", *how, "--dry-run") for how in (["--init", model], ["--set", f"init={model}"]))
    assert option.out == key.out and f"\ninit: {model}\n" in option.out
