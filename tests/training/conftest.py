"""What several tests of training start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spheregen.cli.main import app
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as latents of the bundled model, made by the command."""
    folder = tmp_path_factory.mktemp("latents") / "cache"
    done = CliRunner().invoke(app, ["encode", "digits", "digits", "--out", str(folder), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the debug recipe."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(load_recipe("debug"), folder, device="cpu")
    return folder
