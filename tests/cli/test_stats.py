"""`spheregen stats` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from spheregen.data import read_metadata
from tests.cli.conftest import Run
from tests.data.kinds import contents, write_folder, zip_bytes

Stats = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stats(run: Run) -> Stats:
    """Exit code, stdout and stderr of `spheregen stats` in an empty folder."""

    def call(*arguments: object) -> tuple[int, str, str]:
        result = run("stats", *arguments)
        return result.code, result.out, result.err

    return call


def test_report_and_sheet(stats: Stats) -> None:
    files = contents()
    Path("set.zip").write_bytes(zip_bytes(files | {"ant/900.png": b"junk", "bee/901.png": files["ant/000.png"]}))
    code, out, err = stats("set.zip", "--out", "sheet.png")
    assert code == 0, err
    for words in ("images", "25", "PNG 24", "RGB 24", "ant", "########", "balance", "ant/900.png: not an image"):
        assert words in out, words
    assert "bee/901.png = " in out
    assert "sheet.png" in err
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 300
    assert read_metadata(Path("sheet.png"))["source"] == "set"


def test_json(stats: Stats) -> None:
    code, out, _ = stats("digits", "--split", "test", "--limit", 40, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["count"], answer["examined"], answer["image_size"], answer["channels"]) == (397, 40, 8, 1)


def test_unlabelled(stats: Stats) -> None:
    write_folder(Path("flat"), {Path(name).name: data for name, data in contents(4).items()})
    assert "unlabelled" in stats("flat")[1]


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
def test_bad_input_is_one_line(stats: Stats, arguments: list[str], words: str) -> None:
    code, _, err = stats(*arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not list(Path().iterdir())
