"""`spheregen ablate` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

TINY = (
    "--set", "train.steps=2", "--set", "train.preview_every=0", "--set", "optimizer.warmup_steps=0",
    "--device", "cpu", "--split", "test",
)  # fmt: skip


def test_a_study_from_the_command_line(run: Run) -> None:
    """Trainings that fail have a note; the same command again tries those alone."""
    over = ("--over", "optimizer.lr=1e-3,1e30", "--over", "sampling.steps=1,2", "--seeds", 2)
    command = ("ablate", "debug", *TINY, *over, "-n", 10)
    result = run(*command)
    assert result.code == 0, result.err
    header, *rows = result.out.splitlines()
    assert header.split()[:3] == ["optimizer.lr", "sampling.steps", "FD-own"]
    assert [row.split()[1] for row in rows] == ["1", "2", "1", "2"]
    assert " *" in result.out and result.out.count("±") == 14
    assert "failed 2 of 2: " in rows[2]
    assert "training 1 of 4" in result.err and "page: ablation-debug/index.html" in result.err
    assert {path.name for path in Path("ablation-debug").iterdir()} >= {"ablation.json", "ablation.csv", "index.html"}
    again = run(*command, "--json")
    assert again.code == 0 and "training 1 of 2: lr 1e+30" in again.err
    assert json.loads(again.out) == json.loads(Path("ablation-debug/ablation.json").read_text("utf-8"))


def test_a_dry_run_tells_the_work_and_writes_nothing(run: Run) -> None:
    command = ("ablate", "debug", *TINY, "--over", "loss.w5=0,0.1", "--over", "sampling.steps=1,2,4", "--dry-run")
    result = run(*command)
    assert result.code == 0, result.err
    assert "w5-0-" in result.out and "6 combinations, 2 trainings" in result.out
    told = json.loads(run(*command, "--json").out)
    assert [each["combinations"] for each in told["trainings"]] == [3, 3]
    assert told["pflops"] == pytest.approx(sum(each["pflops"] for each in told["trainings"]))
    assert told["combinations"][3]["settings"] == {"loss.w5": 0.1, "sampling.steps": 1}
    over = ("--over", "loss.w5=0", "--over", "sampling.steps=1,2")
    one_by_one = run("ablate", "debug", *TINY, *over, "--one-by-one", "--dry-run")
    assert "4 combinations, 2 trainings" in one_by_one.out
    assert list(Path().iterdir()) == []


BAD: list[tuple[tuple[object, ...], str]] = [
    ((), "give at least one --over"),
    (("--over", "model.max_angel=3"), "did you mean 'max_angle'"),
    (("--over", "noise.alpha_max=45,120"), "noise.alpha_max=120"),
    (("--over", "loss.w5=0", "--over", "loss.w5=1"), "given twice"),
    (("--over", "loss.w5=0,0"), "same settings"),
    (("--over", "loss.w5=0", "--count", 1), "at least 2 samples"),
    (("--over", "loss.w5=0", "--features", "owl"), "own"),
    (("--over", "loss.w5=0", "--features", "own,own"), "twice"),
    (("--over", "loss.w5=0", "--out", "file/deep"), "is a file"),
    (("--over", "loss.w5=0", "--split", "nothing"), "no split"),
    (("--over", "loss.w5=0", "--data", "nowhere"), "nowhere"),
]


def test_errors_are_one_line_and_nothing_is_trained(run: Run) -> None:
    Path("file").touch()
    for arguments, message in BAD:
        run("ablate", "debug", *TINY, *arguments).fails(message)
        assert [path.name for path in Path().iterdir()] == ["file"]
