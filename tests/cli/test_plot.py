"""`spheregen plot`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spheregen.data import read_metadata
from tests.cli.conftest import Run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(run: Run) -> Call:
    """Run the command in a folder with two runs, `one` and `two`; returns exit code, stdout and stderr."""
    pytest.importorskip("matplotlib")
    for name, factor in (("one", 1.0), ("two", 0.5)):
        lines = [{"step": step, "loss": factor / step, "grad_norm": 1.0, "lr": 1e-3} for step in range(5, 50, 5)]
        Path(name).mkdir()
        Path(name, "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 50')

    def plot(*arguments: str) -> tuple[int, str, str]:
        result = run("plot", *arguments)
        return result.code, result.out, result.err

    return plot


def test_the_picture_of_a_run_lies_in_its_folder(call: Call) -> None:
    code, out, err = call("one")
    assert (code, out) == (0, "")
    assert err.strip() == f"3 metrics up to step 45: {Path('one', 'curves.png')}"
    assert read_metadata(Path("one/curves.png"))["runs"] == "one"


def test_several_runs_are_laid_over_one_another(call: Call) -> None:
    assert call("one", "two", "one", "--smooth", "3")[0] == 0
    assert read_metadata(Path("curves.png"))["runs"] == "one, two"
    assert not Path("one/curves.png").exists()


def test_only_some_metrics(call: Call) -> None:
    code, _, err = call("one", "--only", "loss, grad_norm", "--out", "deep/here.svg")
    assert code == 0 and err.startswith("2 metrics")
    drawn = Path("deep/here.svg").read_text()
    assert "gradient norm" in drawn and "learning rate" not in drawn


def test_json_prints_numbers_and_draws_on_request(call: Call) -> None:
    answer = json.loads(call("one", "two", "--json", "--only", "loss")[1])
    assert answer["picture"] is None and not list(Path().rglob("*.png"))
    assert answer["runs"]["one"] == {
        "loss": {
            "count": 9,
            "last": 1 / 45,
            "last_step": 45,
            "min": 1 / 45,
            "min_step": 45,
            "max": 0.2,
            "max_step": 5,
        }
    }
    answer = json.loads(call("one", "--json", "--out", "x.png")[1])
    assert answer["picture"] == "x.png" and Path("x.png").is_file()
    assert set(answer["runs"]["one"]) == {"loss", "grad_norm", "lr"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere does not exist"),
        ((".",), "has no log.jsonl"),
        (("one", "--only", "los"), "did you mean 'loss'"),
        (("one", "--only", "los", "--json"), "did you mean 'loss'"),
        (("one", "--only", "loss,,lr"), "is not a list"),
        (("one", "--out", "curves.bmp"), "ends in .png"),
        (("one", "--out", "two"), "is a folder"),
        (("one", "--smooth", "0"), "at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(call: Call, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err
