"""`spheregen sweep`: the same seeds under many settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spheregen import Pipeline
from spheregen.data import labelled_sheet, read_metadata
from spheregen.evaluation import scorers
from tests.cli.conftest import Run, names

Done = Callable[..., Any]


def test_all_combinations_are_scored(done: Done) -> None:
    grid = ["--steps", "1", "--guidance", "1,1.5", "--set", "schedule=fixed,decay", "--count", 2, "--score", 10]
    answer = done("sweep", "digits", *grid, "--seed", 3)
    combinations = [(each["steps"], each["schedule"], each["guidance"]) for each in answer["settings"]]
    assert combinations == [(1, schedule, guidance) for schedule in ("fixed", "decay") for guidance in (1.0, 1.5)]
    assert all(0 <= each["accuracy"] <= 1 and each["ms_per_image"] > 0 for each in answer["settings"])
    one, other = (answer["settings"][i] for i in (0, 2))  # of one step: the schedule does not matter
    assert one["distance_ratio"] == pytest.approx(other["distance_ratio"])
    metadata = read_metadata(Path(answer["sheet"]))
    assert (metadata["model"], metadata["seed"]) == ("digits", "3")


def test_a_table_and_the_sheet(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def draw(cells: list[list[torch.Tensor]], rows: list[str], columns: list[str], **more: Any) -> Image.Image:
        drawn.update(cells=cells, rows=rows, columns=columns, title=more["title"])
        return labelled_sheet(cells, rows, columns, **more)

    monkeypatch.setattr("spheregen.data.labelled_sheet", draw)
    grid = ["--steps", "1,2", "--set", "share_noise=true,false", "--guidance", "1,3", "--score", 0]
    result = run("sweep", model, *grid, "-n", 4, "--seed", 5, "--labels", "8,1,3")
    assert result.code == 0, result.err
    header, *lines = result.out.splitlines()
    assert header.split() == ["steps", "share_noise", "guidance", "ms_per_image"]
    assert [line.split()[:2] for line in lines[:4]] == [["1", "True"]] * 2 + [["1", "False"]] * 2
    assert (drawn["rows"][:2], drawn["columns"]) == (
        ["steps 1, share noise True", "steps 1, share noise False"],
        ["guidance 1", "guidance 3"],
    )
    pipe = Pipeline.from_pretrained(model, device="cpu", quiet=True)
    made = pipe.generate(4, seed=5, labels=[8, 1, 3, 8], steps=2, guidance=3.0, share_noise=False)
    torch.testing.assert_close(drawn["cells"][3][1], made.tensor, atol=1e-4, rtol=0)
    assert names() == ["sweep.png"]


def test_without_a_scorer(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(scorers, "find_scorer", lambda *_: None)
        for score in ([], ["--score", 10]):
            result = run("sweep", model, "--steps", "1", "--json", *score)
            assert [set(each) for each in result.json["settings"]] == [{"steps", "ms_per_image"}]
            assert ("nothing can score" in result.err) == bool(score)
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    assert "scikit-learn" in run("sweep", "digits", "--steps", "1").err
    run("sweep", "digits", "--steps", "1", "--score", 5).fails("scikit-learn")


BAD: list[tuple[list[str], str]] = [
    (["MODEL", "--out", "sweep.jpg"], ".png"),
    (["MODEL", "--out", "folder.png"], "is a folder"),
    (["MODEL", "--steps", "1,two"], "--steps"),
    (["MODEL", "--guidance", "1,-1"], "guidance"),
    (["MODEL", "--set", "guidance_at=pixels"], "did you mean 'pixel'"),
    (["MODEL", "--set", "schedule=fixed,decya"], "did you mean 'decay'"),
    (["MODEL", "--set", "share_noise=fresh"], "share_noise"),
    (["MODEL", "--score", "-1"], "--score"),
    (["MODEL", "--count", "9999"], "too many"),
]


def test_mistakes_are_one_line_and_leave_nothing(run: Run, model: Path) -> None:
    Path("folder.png").mkdir()
    for arguments, named in BAD:
        run("sweep", *(str(model) if argument == "MODEL" else argument for argument in arguments)).fails(named)
        assert names() == []
