"""`spheregen compare`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.evaluation.report.examples import example_result


@pytest.fixture
def folders(run: Run) -> None:
    """Results in `one` and, of another model, `two`; `run` has made their folder the current one."""
    for name in ("one", "two"):
        result = example_result()
        if name == "two":
            result["model"]["fingerprint"] = "other"
            result["protocol"]["steps"] = 2
            result["metrics"]["own"]["figures"].update(frechet=20.0, kid=0.0133, kid_error=0.00015)
        Path(name).mkdir()
        Path(name, "evaluation.json").write_text(json.dumps(result))


def test_figures_side_by_side(run: Run, folders: None) -> None:
    result = run("compare", "one", "two/evaluation.json")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["figure", "better", "one", "two", "against", "the", "first"]
    assert lines[1].split() == ["FD-own", "lower", "23.41", "20", "*", "-3.41"]
    assert "0.0123 +- 0.0002 *" in lines[2] and lines[2].endswith("+0.001 (4.0 errors)")
    assert lines[-1].split() == ["steps", "4", "2"]
    assert lines[-3].split() == ["what", "differs", "one", "two"]
    answer = run("compare", "one", "two", "--json").json
    assert answer["names"] == ["one", "two"] and answer["warnings"] == []
    assert answer["figures"][0]["best"] == 1 and answer["settings"]["steps"] == ["4", "2"]


def test_incomparable_figures_are_warned_of(run: Run, folders: None) -> None:
    changed = json.loads(Path("two/evaluation.json").read_text())
    changed["protocol"]["count"] = 50000
    Path("two/evaluation.json").write_text(json.dumps(changed))
    result = run("compare", "one", "two")
    assert result.code == 0
    assert result.out.splitlines()[1].split()[:2] == ["FD-own", "(!)"] and "20 *" not in result.out
    assert result.err.splitlines()[0] == "(!): not comparable"
    assert "warning: different count of the samples: 10000 (one), 50000 (two)" in result.err


def test_no_control_sequence_reaches_the_terminal(run: Run, folders: None) -> None:
    changed = example_result()
    evil = "\x1b[2J\nwarning: all is well\x9b"
    changed["model"]["name"] = changed["protocol"]["labels"] = changed["metrics"]["own"]["features"]["distance"] = evil
    changed["metrics"][evil] = changed["metrics"].pop("own")
    Path("two/evaluation.json").write_text(json.dumps(changed))
    result = run("compare", "one", "two")
    assert result.code == 0
    assert not {"\x1b", "\x9b"} & set(result.out + result.err)
    assert "\nwarning: all is well" not in result.out + result.err


def test_mistakes_are_one_clear_line(run: Run, folders: None) -> None:
    Path("broken.json").write_text("{")
    run("compare", "one").fails("two evaluations or more")
    run("compare", "one", "one").fails("given twice")
    run("compare", "one", "nowhere").fails("there is no nowhere")
    run("compare", "one", "broken.json").fails("no JSON")
