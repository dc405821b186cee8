"""`spheregen sample`: images, grids, archives, and images made again from what their PNG says."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spheregen import Pipeline
from spheregen.data import open_source, read_metadata, save_png
from tests.cli.conftest import Run, contents, names, pixels

Done = Callable[..., Any]


@pytest.fixture
def made(done: Done, model: Path) -> Path:
    """An image out of five; the third is of seed 12 and class 7."""
    done("sample", model, "-n", 5, "--seed", 10, "--labels", "3,8,7", "--out", "made", "--batch-size", 1)
    return Path("made/000012.png")


def test_a_folder_of_images_and_its_grid(done: Done, model: Path) -> None:
    answer = done("sample", model, "-n", 5, "--out", "made", "--labels", "3,7", "--seed", 10, "--steps", 3)
    assert (answer["steps"], answer["count"], answer["grid"]) == (3, 5, "made.png")
    assert names() == ["made.png", *(f"made/{seed:06d}.png" for seed in range(10, 15))]
    metadata = read_metadata(Path("made/000011.png"))
    assert (metadata["seed"], metadata["label"], metadata["steps"], metadata["guidance"]) == ("11", "7", "3", "1.2")
    with Image.open("made/000010.png") as image:
        assert image.mode == "L" and image.size == (8, 8)


def test_a_grid_alone(run: Run, model: Path) -> None:
    assert run("sample", model, "--out", "grid.png").code == 0
    assert names() == ["grid.png"]
    assert run("sample", model, "-n", 1, "--out", ".", "--overwrite").code == 0
    assert names() == ["000000.png", "grid.png", "sheet.png"]


def test_a_class_name_may_have_a_comma(done: Done, model: Path) -> None:
    shutil.copytree(model, "model")
    config = json.loads(Path("model/config.json").read_text())
    config["class_names"][4] = "hen, domestic fowl"
    Path("model/config.json").write_text(json.dumps(config))
    done("sample", "model", "-n", 1, "--labels", "hen, domestic fowl", "--out", "made")
    assert read_metadata(Path("made/000000.png"))["label"] == "4"


def test_like_repeats_an_image_bit_for_bit(done: Done, made: Path) -> None:
    answer = done("sample", "--like", made)
    assert (answer["count"], answer["seed"], answer["out"]) == (1, 12, "repeated")
    assert Path("repeated/000012.png").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        (["--set", "guidance_at=pixel", "--guidance", "3"], {"guidance": "3.0", "guidance_at": "pixel"}),
        (["--set", "schedule=[0.5]", "--labels", "1"], {"schedule": "[0.5]", "label": "1", "class": "1"}),
        (
            ["--set", "share-noise=false", "--steps", "3", "--seed", "99"],
            {"share_noise": "False", "steps": "3", "seed": "99"},
        ),
    ],
)
def test_each_option_is_read_and_repeated(done: Done, made: Path, option: list[str], changed: dict[str, str]) -> None:
    answer = done("sample", "--like", made, *option)
    again = Path(f"repeated/{answer['seed']:06d}.png")
    before, after = read_metadata(made), read_metadata(again)
    assert {name for name in before if before[name] != after[name]} - {"settings"} == set(changed)
    assert {name: after[name] for name in changed} == changed
    assert (pixels(made) != pixels(again)).any()
    done("sample", "--like", again, "--out", "twice")
    assert (Path("twice") / again.name).read_bytes() == again.read_bytes()


def test_like_needs_the_model_where_it_is_now_and_warns_of_other_weights(run: Run, done: Done, model: Path) -> None:
    shutil.copytree(model, "near/model")
    done("sample", "near/model", "-n", 1, "--out", "relative")
    shutil.move("near/model", "elsewhere")
    run("sample", "--like", "relative/000000.png").fails("near/model", "MODEL --like")
    assert "warning" not in run("sample", "elsewhere", "--like", "relative/000000.png").err
    pipe = Pipeline.from_pretrained("elsewhere", device="cpu", quiet=True)
    for parameter in pipe.model.parameters():
        parameter.mul_(1.01)
    pipe.save_pretrained("changed")
    result = run("sample", "changed", "--like", "relative/000000.png", "--out", "other", "-q")
    assert result.code == 0 and "other weights" in result.err


def test_like_knows_classes_by_id(done: Done, model: Path) -> None:
    """Folders 0, 1, 10, 2 ... are sorted as text: class 2 is called "10", and class 3 "2"."""
    shutil.copytree(model, "model")
    config = json.loads(Path("model/config.json").read_text())
    config["class_names"] = ["0", "1", "10", *"2345678"]
    Path("model/config.json").write_text(json.dumps(config))
    done("sample", "model", "-n", 1, "--seed", 2, "--out", "made")
    before = read_metadata(Path("made/000002.png"))
    assert (before["label"], before["class"]) == ("2", "10")
    done("sample", "--like", "made/000002.png")
    assert read_metadata(Path("repeated/000002.png")) == before


def test_like_downloads_nothing_that_an_image_names(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **_: attempts.append(arguments))
    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: attempts.append(arguments))
    for name in ("someone/model", "hf://someone/model", "", "~/model", "x" * 999):
        save_png(Image.open(made), Path("foreign.png"), read_metadata(made) | {"model": name})
        run("sample", "--like", "foreign.png").fails("MODEL --like")
        assert not attempts


def test_like_of_an_image_without_a_usable_record(run: Run, done: Done, model: Path, made: Path) -> None:
    text = read_metadata(made)
    damaged = {"no-number": {"seed": "twelve"}, "no-seed": {"seed": "-1"}, "no-class": {"label": "77"}}
    for name, changes in damaged.items():
        save_png(Image.new("L", (8, 8)), Path(f"{name}.png"), text | changes)
    done("edit", model, made, "--out", "edited")
    before = contents()
    for path in (*(f"{name}.png" for name in damaged), "missing.png", "made.png", "made", "edited.png"):
        run("sample", "--like", path).fails()
        assert contents() == before, path


def test_like_does_not_overwrite_its_image(run: Run, made: Path) -> None:
    before = contents()
    for options in (["--out", "made", "--steps", 1], ["--out", made], ["--out", "made", "--seed", 11, "-n", 3]):
        run("sample", "--like", made, *options).fails("overwrite", "--out")
    assert contents() == before
    assert run("sample", "--like", made, "--out", "made", "--seed", 20).code == 0


@pytest.mark.parametrize(("out", "grid"), [("x.zip", "x.png"), ("part-%06d.tar", "part.png")])
def test_archives_hold_the_images_of_a_folder(done: Done, model: Path, out: str, grid: str) -> None:
    answer = done("sample", model, "-n", 7, "--out", out, "--labels", "4,2", "--seed", 3, "--shard-size", 3)
    assert (answer["count"], answer["grid"]) == (7, grid) and Path(grid).is_file()
    if out.endswith(".tar"):
        assert [len(open_source(f"part-{shard:06d}.tar")) for shard in range(3)] == [3, 3, 1]
    source = open_source(out.replace("%06d", "*"))
    done("sample", model, "-n", 7, "--out", "folder", "--labels", "4,2", "--seed", 3)
    assert source.labels is not None and source.class_names is not None
    expected = sorted([(4, 2)[i % 2], pixels(f"folder/{3 + i:06d}.png").tolist()] for i in range(7))
    labels = [int(source.class_names[label]) for label in source.labels.tolist()]
    assert sorted([label, np.asarray(source.read(i)).tolist()] for i, label in enumerate(labels)) == expected


BAD: list[tuple[list[str], str]] = [
    ([], "name a model"),
    (["MODEL", "--labels", "1,,2"], "1,,2"),
    (["MODEL", "--set", "solver=heun"], "no refiner"),
    (["MODEL", "--count", "0"], "--count"),
    (["MODEL", "--count", "100000000000000000000"], "--count"),
    (["MODEL", "--out", "folder.png"], "is a folder"),
    (["MODEL", "--out", "photo"], "photo.png"),
    (["MODEL", "--out", f"{'9' * 300}.png"], "999"),
    (["MODEL", "--out", "part-%06d.zip"], "%06d"),
    (["MODEL", "--out", "part-%06d.tar", "--shard-size", "0"], "shard_size"),
    (["MODEL", "--out", "grid.png", "--count", "10001"], "10001"),
]


def test_mistakes_are_one_line_and_leave_nothing(run: Run, model: Path) -> None:
    Path("file").write_text("precious")
    Image.new("L", (8, 8)).save("photo.png")
    for folder in ("empty", "folder.png"):
        Path(folder).mkdir()
    before = contents()
    for arguments, named in BAD:
        run("sample", *(str(model) if argument == "MODEL" else argument for argument in arguments)).fails(named)
        assert contents() == before
