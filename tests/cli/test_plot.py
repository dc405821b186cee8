"""`spheregen plot`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spheregen.data import read_metadata
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _runs(run: Run) -> None:
    """Two runs, `one` and `two`, in the folder that commands run in."""
    pytest.importorskip("matplotlib")
    for name, factor in (("one", 1.0), ("two", 0.5)):
        lines = [{"step": step, "loss": factor / step, "grad_norm": 1.0, "lr": 1e-3} for step in range(5, 50, 5)]
        Path(name).mkdir()
        Path(name, "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 50')


def test_curves_of_one_run_and_of_several(run: Run) -> None:
    result = run("plot", "one")
    assert (result.code, result.out) == (0, "")
    assert result.err.strip() == f"3 metrics up to step 45: {Path('one', 'curves.png')}"
    assert read_metadata(Path("one/curves.png"))["runs"] == "one"
    assert run("plot", "one", "two", "one", "--smooth", "3", "--only", "loss").code == 0
    assert read_metadata(Path("curves.png"))["runs"] == "one, two"
    drawn = run("plot", "one", "--only", "loss, grad_norm", "--out", "deep/here.svg")
    assert drawn.code == 0 and drawn.err.startswith("2 metrics")
    text = Path("deep/here.svg").read_text()
    assert "gradient norm" in text and "learning rate" not in text
    assert ">0.1<" in text and "math" not in text  # ticks of the logarithmic axis


def test_json_prints_numbers_and_draws_on_request(run: Run) -> None:
    answer = run("plot", "one", "two", "--json", "--only", "loss").json
    assert answer["image"] is None and not list(Path().rglob("*.png"))
    of_loss = {"count": 9, "last": 1 / 45, "last_step": 45, "min": 1 / 45, "min_step": 45, "max": 0.2, "max_step": 5}
    assert answer["runs"]["one"] == {"loss": of_loss}
    answer = run("plot", "one", "--json", "--only", "lr", "--out", "x.png").json
    assert answer["image"] == "x.png" and Path("x.png").is_file()


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
def test_mistakes_are_one_clear_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    run("plot", *arguments).fails(words)
