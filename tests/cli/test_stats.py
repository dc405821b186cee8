"""`spheregen stats` as a user types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from spheregen.cli import main
from spheregen.data import read_metadata
from tests.data.kinds import contents, write_folder, zip_bytes

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spheregen", "stats", *map(str, arguments)])
        code = 0
        try:
            main.run()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_report_and_sheet(run: Run) -> None:
    files = contents()
    Path("set.zip").write_bytes(zip_bytes(files | {"ant/900.png": b"junk", "bee/901.png": files["ant/000.png"]}))
    code, out, err = run("set.zip", "--out", "sheet.png")
    assert code == 0, err
    for words in ("images", "25", "PNG 24", "RGB 24", "ant", "########", "balance", "ant/900.png: not an image"):
        assert words in out, words
    assert "bee/901.png = " in out
    assert "sheet.png" in err
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 300
    assert read_metadata(Path("sheet.png"))["source"] == "set"


def test_json(run: Run) -> None:
    code, out, _ = run("digits", "--split", "test", "--limit", 40, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["count"], answer["examined"], answer["image_size"], answer["channels"]) == (397, 40, 8, 1)


def test_unlabelled(run: Run) -> None:
    write_folder(Path("flat"), {Path(name).name: data for name, data in contents(4).items()})
    assert "unlabelled" in run("flat")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "check the path for a typo"),
        (["digits", "--out", "sheet.jpg"], "PNG"),
        (["digits", "--limit", "0"], "limit"),
        (["digits", "--workers", "-1"], "workers"),
        (["digits", "--split", "tset"], "did you mean 'test'"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not list(Path().iterdir())
