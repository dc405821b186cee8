"""What commands write: nothing of others is lost, old and new are told apart, every name can be shown."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spheregen.cli import main
from tests.cli.conftest import Run, contents, names, pixels
from tests.factories import image_folder

WRITE = {
    "sample MODEL -n 2": ("cat.png", "cat", "cat.zip"),
    "edit MODEL photos --steps 1": ("cat.png", "cat", "cat.zip"),
    "reconstruct MODEL photos": ("cat.png", "cat.zip"),
    "interpolate MODEL 1 2 --frames 2": ("cat.png", "cat.gif", "cat.zip"),
    "sweep MODEL -n 1 --steps 1 --score 0": ("cat.png",),
    "stats photos": ("cat.png",),
}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("line", WRITE)
def test_a_file_of_others_is_replaced_only_if_asked(run: Run, model: Path, line: str) -> None:
    photos = [f"photos/{name}" for name in names("photos")]
    words = [str(model) if word == "MODEL" else word for word in line.split()]
    for name in ("cat.png", "cat.gif", "cat.zip"):
        Path(name).write_bytes(Path(photos[0]).read_bytes())
    before = contents()
    for out in WRITE[line]:
        run(*words, "--out", out).fails("cat", "--overwrite")
        assert before.items() <= contents().items()
        assert run(*words, "--out", out, "--overwrite").code == 0
        if out != "cat":
            assert run(*words, "--out", out).code == 0  # it is ours now
        for name, data in before.items():
            Path(name).write_bytes(data)


@pytest.mark.usefixtures("pictures")
def test_new_images_never_mix_with_old_ones_without_a_word(run: Run, model: Path) -> None:
    assert run("sample", model, "-n", 3, "--seed", 500, "--out", "s").code == 0
    assert run("sample", model, "-n", 3, "--seed", 500, "--out", "s").code == 0  # the same ones
    run("sample", model, "-n", 2, "--out", "s").fails("s already holds 3 images", "--overwrite")
    assert len(names("s")) == 3
    assert "already holds 3 images" in run("sample", model, "-n", 2, "--out", "s", "--overwrite", "-q").err
    assert "already holds 5 images" in run("edit", model, "photos", "--steps", 1, "--out", "s", "-q").err


def test_a_folder_of_others_keeps_its_files(run: Run, model: Path) -> None:
    Path("s").mkdir()
    Image.new("L", (8, 8)).save("s/000001.png")
    before = contents()
    run("sample", model, "-n", 3, "--out", "s").fails("000001.png", "--overwrite")
    assert contents()["s/000001.png"] == before["s/000001.png"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("line", ["sample MODEL -n 1", "edit MODEL photos", "reconstruct MODEL photos"])
def test_places_where_nothing_can_be_written(run: Run, model: Path, line: str) -> None:
    words = [str(model) if word == "MODEL" else word for word in line.split()]
    for out in ("/proc/nowhere/x", "/proc/nowhere/x.png", "/dev/null/x", "mask.png/x"):
        run(*words, "--out", out).fails("--out")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("name", ["\u732b", "\U0001f431", "caf\u00e9"])
def test_names_that_the_terminal_cannot_write(
    run: Run, monkeypatch: pytest.MonkeyPatch, encoding: str, name: str
) -> None:
    image_folder(Path("d/a"), classes=0, per_class=2, size=8)
    Path("d/a").rename(Path("d") / name)
    for words in (["stats", "d", "--json"], ["stats", "d"]):
        written = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
            main.run(words)
            sys.stdout.flush()
            shown = written.getvalue()
        text = shown.decode(encoding)
        if "--json" in words:
            assert json.loads(text)["class_names"] == [name]


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "MODEL", "-n", 10**20], ["sample", "MODEL", "--seed", 2**63], ["sample", "MODEL", "--seed", -1],
        ["sample", "MODEL", "--steps", 10**9], ["sample", "MODEL", "--guidance", "nan"],
        ["sample", "MODEL", "--guidance", "inf"], ["sample", "MODEL", "--shard-size", 0, "--out", "p-%06d.tar"],
        ["vary", "MODEL", "photos/a.png", "-n", 10**20], ["vary", "MODEL", "photos/a.png", "--angle", "nan"],
        ["edit", "MODEL", "photos", "--strength", "nan"], ["edit", "MODEL", "photos", "--seed", 10**30],
        ["interpolate", "MODEL", 1, 2, "--frames", 10**20], ["interpolate", "MODEL", 1, 10**25],
        ["interpolate", "MODEL", 1, 2, "--fps", "nan", "--out", "a.gif"],
        ["sweep", "MODEL", "-n", 10**20], ["sweep", "MODEL", "--steps", 10**9], ["sweep", "MODEL", "--score", 10**20],
        ["evaluate", "MODEL", "--data", "photos", "-n", 10**20], ["upscale", "MODEL", "photos", "--factor", 10**20],
    ],
)  # fmt: skip
def test_impossible_numbers(run: Run, model: Path, words: list[object]) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    result = run(*(str(model) if word == "MODEL" else word for word in words))
    assert result.code == 2 and "Traceback" not in result.err and "error: " in result.err
    assert names() == ["photos/a.png"]


@pytest.mark.parametrize("option", ["--swap", "--all-steps", "--fresh-noise", "--no-pictures", "--force", "--schedule"])
def test_options_of_before_say_what_to_do_instead(run: Run, option: str) -> None:
    result = run("sample", "digits", option)
    result.fails(option)
    assert "give " in result.err or "write " in result.err or "leave " in result.err


def test_upscaling_what_has_full_size_says_that_there_is_nothing_to_do(run: Run, model: Path) -> None:
    Image.new("RGB", (8, 8)).save("full.png")
    run("upscale", model, "full.png").fails("nothing to do")
    assert names() == ["full.png"]


def test_a_comparison_shows_a_spread_of_the_set(run: Run, model: Path) -> None:
    Path("set").mkdir()
    for number in range(100):
        Image.new("RGB", (8, 8), (number * 2,) * 3).save(f"set/{number:03d}.png")
    assert run("reconstruct", model, "set", "--out", "c.png").code == 0
    shown = pixels("c.png")[30:-1:132, 30::66]  # a pixel of each original
    greys = shown[..., 0] if shown.ndim == 3 else shown
    assert list(np.unique(greys // 10)) == list(range(0, 20))


def test_a_sheet_of_samples_names_its_classes(run: Run, model: Path) -> None:
    assert run("sample", model, "-n", 4, "--out", "all.png").code == 0
    assert run("sample", model, "-n", 4, "--labels", "3,4", "--out", "two.png").code == 0
    assert run("sample", model, "-n", 4, "--labels", "3", "--out", "one.png").code == 0
    sizes = {name: pixels(name).shape for name in names()}
    assert len(set(sizes.values())) == len(sizes)
