"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
GOLDEN = SHARED / "golden" / "official-sphere-encoder"
GOLDEN_NAMES = ("class-conditional-conv-head", "unconditional-linear-head")


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden tensors beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real data and golden tensors), which is absent")
    return SHARED
