"""Running means, the log file, and what a checkpoint refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.errors import ModelFileError
from spheregen.training.checkpoint import checkpoint_path, latest_checkpoint
from spheregen.training.log import Meters


def test_meters_average_since_the_last_reset() -> None:
    meters = Meters()
    assert meters.read() == {}
    for value in (1.0, 2.0, 6.0):
        meters.add({"loss": torch.tensor(value)})
    assert meters.read() == {"loss": 3.0}
    again = Meters(meters.sums)  # as a checkpoint carries them
    again.add({"loss": torch.tensor(11.0)})
    assert again.read() == {"loss": 5.0}
    meters.reset()
    meters.add({"loss": torch.tensor(4.0)})
    assert meters.read() == {"loss": 4.0}


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    path = checkpoint_path(tmp_path, 5)
    path.parent.mkdir()
    path.write_bytes(b"not safetensors")
    (path.parent / ".step-000000009.safetensors.x.tmp").write_bytes(b"")  # of a killed run: never looked at
    with pytest.raises(ModelFileError, match=r"step-000000005.*broken"):
        latest_checkpoint(tmp_path)
