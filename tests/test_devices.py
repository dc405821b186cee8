"""What memory there is: what the system says, within the limits of the container."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen import devices as module
from spheregen.devices import available_memory


def test_available_memory_minds_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = available_memory(torch.device("cpu"))
    assert found is None or found > 0
    assert available_memory(torch.device("mps")) is None
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert module._meminfo(info) == 2048 << 10
    assert module._meminfo(tmp_path / "missing") is None
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    assert 500_000 in module._container_limits(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("5000")
    (old / "memory.usage_in_bytes").write_text("6000")
    monkeypatch.setattr(module, "_meminfo", lambda: 10**6)
    assert list(module._container_limits(tmp_path)) == [-1000]
