"""The memory that there is: what the system says, within the limits of the container."""

from __future__ import annotations

from pathlib import Path

import torch

from spheregen.devices import _memory_limits, available_memory


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_available_memory_minds_the_container(tmp_path: Path) -> None:
    found = available_memory(torch.device("cpu"))
    assert found is None or found > 0
    assert available_memory(torch.device("meta")) is None
    assert list(_memory_limits(tmp_path)) == []
    write(tmp_path / "proc", meminfo="MemTotal: 9 kB\nMemAvailable:    2048 kB\nHugePages_Total: 0\n")
    write(tmp_path / "proc" / "self", cgroup="0::/jobs/7\n")
    groups = tmp_path / "sys" / "fs" / "cgroup"
    write(groups, memory_max="max\n", memory_current="700000\n")
    write(groups / "jobs" / "7", memory_max="1000000\n", memory_current="700000\n")
    write(groups / "jobs" / "7", memory_stat="anon 1\ninactive_file 200000\n")
    write(groups / "memory", memory_limit_in_bytes="5000", memory_usage_in_bytes="6000")
    assert list(_memory_limits(tmp_path)) == [2048 << 10, 500_000, -1000]
