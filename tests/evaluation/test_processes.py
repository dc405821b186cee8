"""Two processes evaluate as one: the same figures to the last digit, and one that fails ends both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

SCRIPT = """
import torch
torch.set_num_threads(1)
from spheregen.cli.main import run
run()
"""


def evaluate(count: int, folder: Path, *arguments: str) -> list[tuple[int, str, str]]:
    """Exit code and output of each process of `spheregen evaluate digits`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, "evaluate", "digits", "-n", "600", "--device", "cpu", "--json", *arguments]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=150) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_two_processes_give_the_figures_of_one(tmp_path: Path) -> None:
    studies = ("--study", "reconstruction,curves", "--curve", "steps=1,2", "--curve-count", "300")
    found = []
    for count in (1, 2):
        results = evaluate(count, tmp_path, *studies, "--report", str(tmp_path / str(count)))
        assert [code for code, _, _ in results] == [0] * count, results
        assert all(not output for _, output, _ in results[1:]), "the first process alone answers"
        answer = json.loads(results[0][1])
        for point in answer["curves"][0]["points"]:
            del point["ms_per_image"]
        del answer["created"]
        found.append(answer)
    assert found[0] == found[1]
    assert found[0]["metrics"]["own"]["figures"]["frechet"] > 0


def test_without_a_report_both_find_the_temporary_store(tmp_path: Path) -> None:
    results = evaluate(2, tmp_path, "--metrics", "frechet")
    assert [code for code, _, _ in results] == [0, 0], results
    assert list(tmp_path.iterdir()) == []


def test_bad_input_ends_both_with_one_line(tmp_path: Path) -> None:
    for code, _, messages in evaluate(2, tmp_path, "--metrics", "kid"):
        assert code == 2
        assert "1000" in messages.strip().splitlines()[-1]
