"""Nothing of these tests is kept in the user's cache, and no test waits for a network."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SPHEREGEN_CACHE", str(folder))
    monkeypatch.setattr("spheregen.data.files._PAUSES", (0.0, 0.0))
    return folder
