"""`spheregen restore`: every task, what it leaves, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, names, pixels, sheet_size

pytestmark = pytest.mark.usefixtures("pictures")
TASKS = {
    "inpaint": ["--mask", "mask.png"],
    "deblur": ["--kernel", "gaussian:1"],
    "superres": ["--factor", 2],
    "denoise": ["--noise", 0.1],
    "dejpeg": ["--set", "quality=20"],
    "dequantise": ["--set", "levels=4"],
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_writes_images_and_a_sheet(done: Callable[..., Any], model: Path, task: str) -> None:
    how = ["--task", task, *TASKS[task], "--steps", 2, "--set", "samples=2"]
    answer = done("restore", model, "photos", *how, "--set", "degrade=true", "--out", "made")
    assert answer["count"] == 2 and answer["steps"] == 2 and answer["samples"] == 2
    assert names("made") == ["000000-000.png", "000001-001.png"]
    assert pixels("made.png").shape[:2][::-1] == sheet_size(5, 2)  # image, start, two steps, spread


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--task", "sharpen"], "sharpen"),
        (["--task", "inpaint"], "mask"),
        (["--task", "deblur"], "kernel"),
        (["--task", "deblur", "--kernel", "gaussian:x"], "kernel"),
        (["--task", "deblur", "--kernel", "nowhere.png"], "nowhere.png"),
        (["--task", "denoise", "--kernel", "gaussian:1"], "kernel"),
        (["--task", "denoise", "--mask", "mask.png"], "mask"),
        (["--task", "denoise", "--noise", "loud"], "--noise"),
        (["--task", "denoise", "--noise", "-1"], "noise"),
        (["--task", "denoise", "--noise", "1,2"], "--noise"),
        (["--task", "denoise", "--set", "scale=-1"], "scale"),
        (["--task", "dejpeg", "--set", "quality=x"], "quality"),
        (["--task", "dequantise", "--set", "levels=2.5"], "levels"),
        (["--task", "dejpeg", "--set", "degrade=maybe"], "degrade"),
        (["--task", "dejpeg", "--set", "degrade=true", "--noise", "0.1"], "noise"),
        (["--task", "inpaint", "--mask", "mask.png", "--set", "tiles=true"], "mask"),
        (["--task", "denoise", "--angle", "100"], "angle"),
        (["--task", "denoise", "--lambda", "-1"], "lambda"),
        (["--task", "superres", "--factor", "3"], "factor"),
        (["--task", "decolour"], "grey"),
        (["--task", "denoise", "--set", "quality=3"], "quality"),
        (["--task", "denoise", "--set", "samples=0"], "samples"),
        (["--task", "denoise", "--set", "degrade=true"], "--noise"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run: Run, model: Path, words: list[str], named: str) -> None:
    run("restore", model, "photos", *words, "--steps", 1).fails(named)
    assert not Path("restored").exists()
