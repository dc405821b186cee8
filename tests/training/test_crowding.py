"""A run tells once that its threads wait for each other on a busy machine."""

from __future__ import annotations

import time

import pytest

from spheregen.training import crowding
from spheregen.training.crowding import CrowdingMonitor


@pytest.mark.parametrize(
    ("threads", "processors", "load", "told"),
    [(2, 1.0, 1.5, 1), (2, 1.9, 1.5, 0), (2, 1.0, 0.9, 0), (1, 0.5, 1.5, 0), (8, 3.0, 1.5, 1), (8, 6.0, 1.5, 0)],
)
def test_it_is_told_once_where_threads_get_little(
    monkeypatch: pytest.MonkeyPatch, threads: int, processors: float, load: float, told: int
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "process_time", lambda: now * processors)
    monkeypatch.setattr(crowding, "load_of_processors", lambda: load)
    lines: list[str] = []
    monitor = CrowdingMonitor(threads, lines.append)
    for step in range(12):
        monitor.on_log(step, {"loss": 1.0})
        monitor.on_log(step, {"heldout/psnr": 20.0})
        now += 6.0
    assert len(lines) == told and all("OMP_NUM_THREADS" in line for line in lines)
