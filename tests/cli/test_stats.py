"""`spheregen stats` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from spheregen.data import read_metadata
from tests.cli.conftest import Run
from tests.data.kinds import contents, write_folder, zip_bytes


def test_report_and_sheet(run: Run) -> None:
    files = contents()
    Path("set.zip").write_bytes(zip_bytes(files | {"ant/900.png": b"junk", "bee/901.png": files["ant/000.png"]}))
    result = run("stats", "set.zip", "--out", "sheet.png")
    assert result.code == 0, result.err
    for words in ("images", "25", "PNG 24", "RGB 24", "ant", "balance", "ant/900.png: not an image"):
        assert words in result.out, words
    assert "bee/901.png = " in result.out and "sheet.png" in result.err
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 300
    assert read_metadata(Path("sheet.png"))["source"] == "set"


def test_json(run: Run) -> None:
    answer = run("stats", "digits", "--split", "test", "--limit", 40, "--json").json
    assert (answer["count"], answer["examined"], answer["image_size"], answer["channels"]) == (397, 40, 8, 1)


def test_unlabelled(run: Run) -> None:
    write_folder(Path("flat"), {Path(name).name: data for name, data in contents(4).items()})
    assert "unlabelled" in run("stats", "flat").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "check the path for a typo"),
        (["digits", "--out", "sheet.jpg"], ".png"),
        (["digits", "--limit", "0"], "limit"),
        (["digits", "--workers", "-1"], "workers"),
        (["digits", "--split", "tset"], "did you mean 'test'"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    run("stats", *arguments).fails(words)
    assert not list(Path().iterdir())
