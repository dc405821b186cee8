"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.cli import options
from spheregen.networks.weights import FOLDER_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
GOLDEN = SHARED / "golden" / "official-sphere-encoder"
GOLDEN_NAMES = ("class-conditional-conv-head", "unconditional-linear-head")


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _no_options_of_commands_before() -> None:
    vars(options.everywhere).update(vars(options.Everywhere()))


@pytest.fixture(autouse=True)
def _quick_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spheregen.measure.features.classifier.SEEN", 640)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden tensors beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real data and golden tensors), which is absent")
    return SHARED


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder and no variable; returns the hub's folder of checkpoints. A download is an error."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no test may use the network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"
