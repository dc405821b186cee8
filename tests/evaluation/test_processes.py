"""Two processes evaluate as one: the same figures to the last digit, with a report and without."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.evaluation.protocol import CurveRequest, EvaluationOptions
from spheregen.evaluation.request import Request, run

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.evaluation.test_processes import request, run
print(json.dumps(run(request(Path(sys.argv[1]) if len(sys.argv) > 1 else None))))
"""
EXTRACTOR = """
import torch
def make():
    return lambda images: torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 4).flatten(1)
"""


def request(report: Path | None) -> Request:
    steps = CurveRequest("steps", (1,))
    options = EvaluationOptions(count=300, curves=(steps,), curve_count=260, metrics=("frechet",))
    studies, features = ("reconstruction", "curves"), ("tiny_features:make",)
    return Request(model="digits", options=options, studies=studies, features=features, report=report, device="cpu")


def of_two(folder: Path, *arguments: str) -> dict[str, Any]:
    """The answer of the first of two processes; the other one has none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            env={**os.environ, **shared, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        first, other = (process.communicate(timeout=150)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert json.loads(other) is None
    found: dict[str, Any] = json.loads(first)
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
    together = of_two(folder, str(folder / "two"))
    assert alone is not None
    for answer in (alone, together):
        for point in answer["curves"][0]["points"]:
            del point["ms_per_image"]
        del answer["created"]
    assert json.loads(json.dumps(alone)) == together
    assert together["reconstruction"]["frechet"]["tiny_features:make"] > 0
    plain = of_two(folder)  # in a temporary folder that both must find
    assert plain["line"] == together["line"]
