"""Two processes evaluate as one: the same figures to the last digit, with a report and without."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.distributed import World, joined_world
from spheregen.evaluation import request as module
from spheregen.evaluation.protocol import CurveRequest, EvaluationOptions
from spheregen.evaluation.request import Request, run
from tests.processes import world

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

EXTRACTOR = """
import torch
def make():
    return lambda images: torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 4).flatten(1)
"""


def request(report: Path | None) -> Request:
    steps = CurveRequest("steps", (1,))
    options = EvaluationOptions(count=260, curves=(steps,), curve_count=20, metrics=("frechet",))
    studies, features = ("reconstruction", "curves"), ("tiny_features:make",)
    return Request(model="digits", options=options, studies=studies, features=features, report=report, device="cpu")


def work() -> None:
    """Evaluate with a report, and in a temporary folder that both processes must find."""
    sys.path.insert(0, "")  # the features are in a module of this folder
    with joined_world("cpu"):
        print(json.dumps([run(request(place)) for place in (Path("two"), None)]))


def of_two() -> list[dict[str, Any]]:
    """The answers of the first of two processes; the other one has none."""
    (first, answer, told), (second, other, messages) = (process.finish(150) for process in world(2, work))
    assert (first, second) == (0, 0), told + messages
    assert json.loads(other) == [None, None]
    found: list[dict[str, Any]] = json.loads(answer)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_features.py").write_text(EXTRACTOR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_processes_give_the_figures_of_one(folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(request(folder / "one"))
    finally:
        torch.set_num_threads(threads)
    together, plain = of_two()
    assert alone is not None
    for answer in (alone, together):
        for point in answer["curves"][0]["points"]:
            del point["ms_per_image"]
        del answer["created"]
    assert json.loads(json.dumps(alone)) == together
    assert together["reconstruction"]["frechet"]["tiny_features:make"] > 0
    assert plain["line"] == together["line"]


def test_a_temporary_folder_stays_until_all_have_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def wait(world: World) -> None:
        seen.append(folder.is_dir())

    monkeypatch.setattr(World, "wait_for_all", wait)
    monkeypatch.setattr(World, "gather_objects", lambda world, value: [value] * world.size)
    with module._work_folder(None, World(0, 2)) as folder:
        assert folder.is_dir()
    assert seen == [True] and not folder.exists()
    with pytest.raises(RuntimeError), module._work_folder(None, World(0, 2)) as folder:
        raise RuntimeError("the others may still read, and may never come")
    assert seen == [True] and folder.is_dir()
    folder.rmdir()
    with pytest.raises(RuntimeError), module._work_folder(None, World()) as folder:
        raise RuntimeError("alone, nobody else reads")
    assert not folder.exists()
