"""Running means, the log file, and what a checkpoint refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from spheregen.errors import ModelFileError
from spheregen.training.checkpoint import checkpoint_path, latest_checkpoint


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    path = checkpoint_path(tmp_path, 5)
    path.parent.mkdir()
    path.write_bytes(b"not safetensors")
    (path.parent / ".step-000000009.safetensors.x.tmp").write_bytes(b"")  # of a killed run: never looked at
    with pytest.raises(ModelFileError, match=r"step-000000005.*broken"):
        latest_checkpoint(tmp_path)
