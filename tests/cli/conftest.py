"""Commands, called as a user types them, in an empty folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from spheregen.cli import main
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.factories import image_folder, tiny_model_folder


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The answer of a command that succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def fails(self, *named: str) -> None:
        """It ended with one line that names all of these."""
        assert self.code == 2, self.err
        assert self.err.splitlines()[-1].startswith("error: ") and "Traceback" not in self.err
        assert self.err.count("\n") == 1
        for each in named:
            assert each in self.err


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        code = 0
        try:
            main.run(list(map(str, arguments)))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def done(run: Run) -> Callable[..., Any]:
    """Run a command with --json and return its answer."""
    return lambda *arguments: run(*arguments, "--json").json


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of 10 classes, whose images show every option."""
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the debug recipe."""
    folder = tmp_path_factory.mktemp("runs") / "debug"
    train(load_recipe("debug", ["train.steps=4"]), folder, device="cpu")
    return folder


@pytest.fixture
def pictures(run: Run) -> None:
    """Two photos and a mask in the empty folder that commands run in."""
    image_folder(Path("photos"), classes=0, per_class=2, size=24)
    lower_half = np.zeros((8, 8), dtype=np.uint8)
    lower_half[4:] = 255
    Image.fromarray(lower_half).save("mask.png")


def names(folder: str | Path = ".") -> list[str]:
    """The files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def contents() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in names()}


def pixels(path: str | Path) -> npt.NDArray[np.int64]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def sheet_size(columns: int, rows: int) -> tuple[int, int]:
    """Images of 8 px are shown eight times as large, with 2 px between them."""
    return columns * 66 + 2, rows * 66 + 2
