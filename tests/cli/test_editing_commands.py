"""The commands that change, join, vary, restore and compare pictures, and the ways in which `sample` repeats them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from typer.main import get_command

from spheregen import Pipeline
from spheregen.cli import main
from spheregen.data import labelled_sheet, open_source, read_metadata, save_png
from spheregen.evaluation import judges
from spheregen.model_folder import model_fingerprint
from tests.cli.conftest import Run
from tests.cli.test_commands import assert_one_line_error

EDITS = {
    "edit": ["photos", "--label", "3", "--steps", "2"],
    "crossover": ["photos/0.png", "photos/1.png", "--steps", "2"],
    "vary": ["photos/0.png", "--count", "3"],
    "inpaint": ["photos", "--mask", "mask.png", "--steps", "2"],
    "upscale": ["photos", "--factor", "2", "--steps", "2"],
}
"""Command -> its arguments behind the model."""
WRITTEN = {
    "edit": ["000000-0.png", "000001-1.png"],
    "crossover": ["000000-0-1.png"],
    "vary": ["000000-0.png", "000001-0.png", "000002-0.png"],
    "inpaint": ["000000-0.png", "000001-1.png"],
    "upscale": ["000000-0.png", "000001-1.png"],
}
COLUMNS = {"edit": 1 + 2, "crossover": 2 + 2, "vary": 1 + 3, "inpaint": 2 + 2, "upscale": 1 + 2}
ROWS = {"edit": 2, "crossover": 1, "vary": 1, "inpaint": 2, "upscale": 2}


@pytest.fixture(scope="module")
def built() -> Any:
    return get_command(main.app)


@pytest.fixture(autouse=True)
def built_once(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands made of the signatures once, not at each of several hundred calls."""
    monkeypatch.setattr(main, "app", built)


@pytest.fixture
def pictures(run: Run) -> None:
    """Two photos and a mask in the empty folder that the command runs in."""
    generator = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(2):
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(f"photos/{number}.png")
    lower_half = np.zeros((8, 8), dtype=np.uint8)
    lower_half[4:] = 255
    Image.fromarray(lower_half).save("mask.png")


@pytest.fixture(scope="module")
def lively(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of large random weights, whose pictures show every option; one of a few training steps is nearly grey."""
    pipe = Pipeline.from_pretrained(model, device="cpu", quiet=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in pipe.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    folder = tmp_path_factory.mktemp("lively") / "model"
    pipe.save_pretrained(folder)
    return folder


def names(folder: str | Path = ".") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def contents() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in names()}


def pixels(path: str | Path) -> npt.NDArray[np.int64]:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.int64)


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def sheet_size(columns: int, rows: int) -> tuple[int, int]:
    """Pictures of 8 px are shown eight times as large, with 2 px between them."""
    return columns * 66 + 2, rows * 66 + 2


def done(run: Run, *arguments: object) -> Any:
    """What a command that succeeds answers as JSON."""
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


# what editing commands write ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", EDITS)
def test_an_edit_writes_single_pictures_and_a_sheet(run: Run, model: Path, command: str) -> None:
    answer = done(run, command, model, *EDITS[command], "--out", "made", "--seed", 5)
    assert names("made") == WRITTEN[command]
    assert (answer["edit"], answer["seed"], answer["count"]) == (command, 5, len(WRITTEN[command]))
    assert (answer["out"], answer["sheet"]) == ("made", "made.png")
    assert size("made.png") == sheet_size(COLUMNS[command], ROWS[command])
    for number, name in enumerate(WRITTEN[command]):
        metadata = read_metadata(Path("made") / name)
        assert metadata["edit"] == command
        assert metadata["seed"] == str(5 + number)
        assert (metadata["model"], metadata["fingerprint"]) == (str(model), model_fingerprint(model))
        assert metadata["image"] == Path(name).stem[7:]
        assert size(f"made/{name}") == (8, 8)
    of_sheet = read_metadata(Path("made.png"))
    assert (of_sheet["edit"], of_sheet["seed"], of_sheet["model"]) == (command, "5", str(model))


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", EDITS)
def test_an_edit_writes_the_sheet_alone(run: Run, model: Path, command: str) -> None:
    before = set(names())
    result = run(command, model, *EDITS[command], "--out", "made.png")
    assert result.code == 0, result.err
    assert result.out == "" and "made.png" in result.err and result.err.count("\n") == 1
    assert set(names()) - before == {"made.png"}
    assert read_metadata(Path("made.png"))["edit"] == command


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", ["edit", "crossover", "inpaint", "upscale"])
def test_all_steps(run: Run, model: Path, command: str) -> None:
    done(run, command, model, *EDITS[command], "--out", "made", "--all-steps")
    stems = [Path(name).stem for name in WRITTEN[command]]
    assert names("made") == sorted(f"{stem}{step}.png" for stem in stems for step in ("", "-step-1", "-step-2"))
    for stem in stems:
        assert (pixels(f"made/{stem}.png") == pixels(f"made/{stem}-step-2.png")).all()
        assert read_metadata(Path(f"made/{stem}-step-1.png"))["step"] == "1"


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", EDITS)
@pytest.mark.parametrize("out", ["made.zip", "made.tar"])
def test_an_edit_into_an_archive(run: Run, model: Path, command: str, out: str) -> None:
    done(run, command, model, *EDITS[command], "--out", out)
    done(run, command, model, *EDITS[command], "--out", "folder")
    archive = open_source(out)
    assert [np.asarray(archive.read(i)).tolist() for i in range(len(archive))] == [
        pixels(f"folder/{name}").tolist() for name in WRITTEN[command]
    ]
    assert Path("made.png").is_file()


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((command, ["--seed", "9"]) for command in EDITS),
        *((command, ["--label", "7"]) for command in EDITS),
        *((command, ["--strength", "0.9"]) for command in EDITS),
        *((command, ["--steps", "4"]) for command in EDITS),
        *((command, ["--guidance", "5"]) for command in EDITS),
        *((command, ["--guidance-at", "pixel"]) for command in EDITS),
        *((command, ["--schedule", "decay"]) for command in ("edit", "crossover", "vary")),
        *((command, ["--schedule", "fixed"]) for command in ("inpaint", "upscale")),
        *((command, ["--fresh-noise"]) for command in EDITS),
        ("crossover", ["--mask", "top-bottom"]),
        ("crossover", ["--mask", "mask.png"]),
        ("crossover", ["--swap"]),
        ("vary", ["--angle", "80"]),
        ("upscale", ["--factor", "4"]),
    ],
)
def test_an_option_is_read(run: Run, lively: Path, command: str, option: list[str]) -> None:
    # --steps 3 is in both, so that there is something to schedule, to guide and to draw noise for
    arguments = [command, lively, *EDITS[command], "--steps", "3", "--label", "3", "--guidance", "2"]
    done(run, *arguments, "--out", "plain")
    answer = done(run, *arguments, *option, "--out", "other")
    assert any((pixels(f"plain/{name}") != pixels(f"other/{name}")).any() for name in WRITTEN[command])
    name, value = option[0][2:].replace("-", "_"), option[-1]
    if name in answer:
        assert str(answer[name]) in ((value, f"{value}.0") if len(option) > 1 else ("True",))


@pytest.mark.usefixtures("pictures")
def test_pictures_do_not_depend_on_how_many_are_edited(run: Run, model: Path) -> None:
    done(run, "edit", model, "photos", "--out", "both", "--batch-size", 1)
    done(run, "edit", model, "photos/1.png", "--out", "one", "--seed", 1, "--batch-size", 1)
    assert (pixels("both/000001-1.png") == pixels("one/000000-1.png")).all()


def test_a_data_set_is_edited_in_parts(run: Run, model: Path) -> None:
    """397 digits are read and written in several parts; seeds and numbers go on over them."""
    result = run("edit", model, "digits", "--split", "test", "--steps", 1, "--out", "made", "--seed", 100, "--quiet")
    assert result.code == 0, result.err
    made = names("made")
    assert len(made) == 397 and made[-1].startswith("000396-digits")
    assert [read_metadata(Path("made") / made[i])["seed"] for i in (0, 64, 396)] == ["100", "164", "496"]
    assert size("made.png") == sheet_size(2, 20)
    assert "397/397" in result.err


@pytest.mark.usefixtures("pictures")
def test_variations_wrap_behind_the_picture(run: Run, model: Path) -> None:
    done(run, "vary", model, "photos/0.png", "--count", 10, "--out", "made.png")
    assert size("made.png") == sheet_size(8, 2)
    sheet = pixels("made.png")
    assert (sheet[2:66, 2:66] == sheet[68:132, 2:66]).all()  # each row begins with the picture
    assert (sheet[68:132, 4 * 66 + 2 :] == 255).all()


@pytest.mark.usefixtures("pictures")
def test_many_variations_are_made_in_parts(run: Run, model: Path) -> None:
    done(run, "vary", model, "photos/0.png", "--count", 66, "--batch-size", 1, "--out", "many", "--quiet")
    done(run, "vary", model, "photos/0.png", "--count", 1, "--seed", 65, "--batch-size", 1, "--out", "one")
    assert len(names("many")) == 66
    assert (pixels("many/000065-0.png") == pixels("one/000000-0.png")).all()


@pytest.mark.usefixtures("pictures")
def test_inpainting_keeps_what_is_known(run: Run, model: Path) -> None:
    save_png(Image.open("photos/0.png").convert("L").resize((8, 8)), Path("small.png"))
    done(run, "inpaint", model, "small.png", "--mask", "mask.png", "--out", "made")
    before, after = pixels("small.png"), pixels("made/000000-small.png")
    assert (before[:4] == after[:4]).all()
    assert (before[4:] != after[4:]).any()


@pytest.mark.usefixtures("pictures")
def test_the_sheet_of_an_enlargement_begins_with_the_small_picture(run: Run, model: Path) -> None:
    small = np.array([[10, 200], [90, 130]], dtype=np.uint8)
    Image.fromarray(small).save("small.png")
    answer = done(run, "upscale", model, "small.png", "--out", "made.png", "--steps", 1)
    assert answer["factor"] == 4
    assert (pixels("made.png")[2:66, 2:66] == small.repeat(32, 0).repeat(32, 1)).all()


@pytest.mark.usefixtures("pictures")
def test_odd_names_become_file_names(run: Run, model: Path) -> None:
    shutil.copy("photos/0.png", "a\nb é.c.png")
    shutil.copy("photos/0.png", f"{'x' * 250}.png")
    done(run, "edit", model, "a\nb é.c.png", f"{'x' * 250}.png", "--out", "made")
    assert names("made") == ["000000-a-b-é-c.png", f"000001-{'x' * 120}.png"]


@pytest.mark.usefixtures("pictures")
def test_the_folder_that_we_are_in(run: Run, model: Path) -> None:
    before = set(names())
    for arguments in (["edit", model, "photos"], ["sample", model, "-n", 1]):
        assert run(*arguments, "--out", ".").code == 0
    assert set(names()) - before == {"000000-0.png", "000001-1.png", "000000.png", "sheet.png"}


def test_reconstruct_into_an_archive_or_the_comparison_alone(run: Run, model: Path) -> None:
    Image.new("L", (8, 8), 90).save("photo.png")
    assert done(run, "reconstruct", model, "photo.png", "--out", "only.png")["comparison"] == "only.png"
    assert names() == ["only.png", "photo.png"]
    assert done(run, "reconstruct", model, "photo.png", "--out", "all.zip")["comparison"] == "all.png"
    done(run, "reconstruct", model, "photo.png", "--out", "folder")
    assert pixels("folder/000000-photo.png").tolist() == np.asarray(open_source("all.zip").read(0)).tolist()
    assert read_metadata(Path("folder/000000-photo.png"))["fingerprint"] == model_fingerprint(model)


# interpolate ----------------------------------------------------------------------------------------------------------


def test_interpolate_seeds_to_a_strip(run: Run, model: Path) -> None:
    answer = done(run, "interpolate", model, 3, 14, "--frames", 5, "--out", "way.png")
    assert (answer["count"], answer["edit"], answer["ends"]) == (5, "interpolate", ["3", "14"])
    assert size("way.png") == sheet_size(5, 1)
    metadata = read_metadata(Path("way.png"))
    assert (metadata["edit"], metadata["ends"], metadata["frames"]) == ("interpolate", "3, 14", "5")
    assert (metadata["seed"], metadata["model"]) == ("3", str(model))


def test_the_ends_of_an_interpolation_are_what_sample_makes(run: Run, model: Path) -> None:
    done(run, "interpolate", model, 3, 14, "--frames", 4, "--out", "way", "--batch-size", 1)
    for seed, frame in ((3, "way/000000.png"), (14, "way/000003.png")):
        done(run, "sample", model, "-n", 1, "--seed", seed, "--steps", 1, "--out", f"seed{seed}")
        assert np.abs(pixels(f"seed{seed}/{seed:06d}.png") - pixels(frame)).max() <= 1
    assert names("way") == [f"{frame:06d}.png" for frame in range(4)]
    assert [read_metadata(Path(f"way/{frame:06d}.png"))["frame"] for frame in range(4)] == list("0123")


def test_interpolate_four_corners_to_a_square(run: Run, model: Path) -> None:
    assert done(run, "interpolate", model, 1, 2, 3, 4, "--frames", 3, "--out", "square.png")["count"] == 9
    assert size("square.png") == sheet_size(3, 3)


@pytest.mark.parametrize(("options", "frames"), [([], 5), (["--bounce"], 8)])
def test_interpolate_to_a_gif(run: Run, model: Path, options: list[str], frames: int) -> None:
    done(run, "interpolate", model, 1, 12, "--frames", 5, "--fps", 10, "--out", "way.gif", *options)
    with Image.open("way.gif") as animation:
        assert getattr(animation, "n_frames", 1) == frames
        assert animation.info["duration"] == 100
        assert animation.size == (256, 256)


def test_a_missing_ffmpeg_is_told_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert_one_line_error(run("interpolate", "nowhere", 1, 2, "--out", "way.mp4"), "ffmpeg", "install")
    assert names() == []


def test_interpolate_to_an_archive(run: Run, model: Path) -> None:
    done(run, "interpolate", model, 1, 2, "--frames", 3, "--out", "way.zip")
    assert len(open_source("way.zip")) == 3


@pytest.mark.usefixtures("pictures")
def test_interpolate_between_photos_and_seeds(run: Run, model: Path) -> None:
    both = done(run, "interpolate", model, "photos/0.png", "photos/1.png", "--frames", 3, "--out", "photos.gif")
    mixed = done(run, "interpolate", model, "photos/0.png", 7, "--frames", 3, "--out", "mixed.gif")
    seeds = done(run, "interpolate", model, 7, 8, "--frames", 3, "--out", "seeds.gif")
    assert [answer["strength"] for answer in (both, mixed, seeds)] == [0.25, 0.25, 1.0]
    done(run, "interpolate", model, "photos/0.png", "photos/1.png", "--frames", 3, "--out", "way")
    done(run, "reconstruct", model, "photos/1.png", "--out", "again")
    assert np.abs(pixels("way/000002.png") - pixels("again/000000-1.png")).max() <= 1


def test_interpolate_between_classes(run: Run, model: Path) -> None:
    answer = done(run, "interpolate", model, 5, 5, "--labels", "2,7", "--frames", 3, "--out", "classes")
    assert answer["labels"] == ["2", "7"]
    for label, frame in ((2, 0), (7, 2)):
        done(run, "sample", model, "-n", 1, "--seed", 5, "--labels", label, "--steps", 1, "--out", f"class{label}")
        assert np.abs(pixels(f"class{label}/000005.png") - pixels(f"classes/{frame:06d}.png")).max() <= 1
    metadata = read_metadata(Path("classes/000000.png"))
    assert metadata["labels"] == "2,7" and "label" not in metadata
    done(run, "interpolate", model, 5, 6, "--labels", "2", "--frames", 2, "--out", "one")
    assert read_metadata(Path("one/000001.png"))["label"] == "2"


@pytest.mark.usefixtures("pictures")
def test_a_file_that_is_called_like_a_seed_wins(run: Run, model: Path) -> None:
    shutil.copy("photos/1.png", "7")
    assert done(run, "interpolate", model, "7", "8", "--frames", 2, "--out", "file")["strength"] == 0.25
    done(run, "reconstruct", model, "photos/1.png", "--out", "again")
    assert np.abs(pixels("file/000000.png") - pixels("again/000000-1.png")).max() <= 1
    Path("7").unlink()
    assert done(run, "interpolate", model, "7", "8", "--frames", 2, "--out", "seed")["strength"] == 1.0


@pytest.mark.parametrize(
    "option",
    [
        ["--path", "lerp"],
        ["--frames", "5"],
        ["--strength", "0.1"],
        ["--steps", "2"],
        ["--schedule", "decay"],
        ["--guidance", "3"],
        ["--fresh-noise"],
        ["--labels", "4"],
    ],
)
def test_an_option_of_interpolate_is_read(run: Run, lively: Path, option: list[str]) -> None:
    plain, other = (
        done(run, "interpolate", lively, 1, 12, "--labels", "3,5", "--steps", 3, "--frames", 4, *more, "--out", out)
        for more, out in (([], "plain"), (option, "other"))
    )
    name = option[0][2:].replace("-", "_")
    if name in other:
        assert plain[name] != other[name]
    assert (plain["count"], other["count"]) == (4, 5 if name == "frames" else 4)
    frame = "000001.png"
    assert (pixels(f"plain/{frame}") != pixels(f"other/{frame}")).any()


@pytest.mark.usefixtures("pictures")
def test_the_seed_of_interpolate_is_of_the_refinements_of_photos(run: Run, lively: Path) -> None:
    ends = ["photos/0.png", "photos/1.png", "--frames", 2, "--steps", 2, "--strength", 1]
    for seed in (0, 1):
        done(run, "interpolate", lively, *ends, "--seed", seed, "--out", f"seed{seed}")
    assert (pixels("seed0/000000.png") != pixels("seed1/000000.png")).any()


# sweep ----------------------------------------------------------------------------------------------------------------


def test_sweep_with_a_judge(run: Run, model: Path) -> None:
    grid = ["--steps", "1,2", "--guidance", "1,1.5", "--schedule", "fixed,decay", "--count", 2, "--score", 20]
    answer = done(run, "sweep", model, *grid, "--seed", 3, "--quiet")
    assert answer["sheet"] == "sweep.png"
    combinations = [(each["steps"], each["schedule"], each["guidance"]) for each in answer["settings"]]
    assert combinations == [
        (steps, schedule, guidance) for steps in (1, 2) for schedule in ("fixed", "decay") for guidance in (1.0, 1.5)
    ]
    assert all(0 <= each["accuracy"] <= 1 and each["ms_per_image"] > 0 for each in answer["settings"])
    one, other = (answer["settings"][i] for i in (0, 2))  # of one step: the schedule does not matter
    assert one["distance_ratio"] == pytest.approx(other["distance_ratio"])
    metadata = read_metadata(Path("sweep.png"))
    assert (metadata["model"], metadata["seed"]) == (str(model), "3")


def test_sweep_prints_a_table(run: Run, model: Path) -> None:
    result = run("sweep", model, "--steps", "1,3", "--noise", "shared,fresh", "--guidance-at", "pixel", "--score", 0)
    assert result.code == 0, result.err
    header, *lines = result.out.splitlines()
    assert header.split() == ["steps", "guidance_at", "share_noise", "ms_per_image"]
    assert [line.split()[:3] for line in lines] == [
        ["1", "pixel", "True"],
        ["1", "pixel", "False"],
        ["3", "pixel", "True"],
        ["3", "pixel", "False"],
    ]
    assert names() == ["sweep.png"]


def test_sweep_without_a_judge(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "find_judge", lambda *_: None)
    for score in ([], ["--score", 10]):
        result = run("sweep", model, "--steps", "1", "--json", *score)
        assert result.code == 0, result.err
        assert [set(each) for each in json.loads(result.out)["settings"]] == [{"steps", "ms_per_image"}]
        assert ("nothing can judge" in result.err) == bool(score)


def test_sweep_without_the_package_of_the_judge(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    result = run("sweep", model, "--steps", "1", "--out", "sheet.png")
    assert result.code == 0 and "no scores: scoring digits needs scikit-learn" in result.err
    assert_one_line_error(run("sweep", model, "--steps", "1", "--score", 5), "scikit-learn")
    assert names() == ["sheet.png"]


def test_what_is_on_a_sweep(run: Run, lively: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def draw(cells: list[list[torch.Tensor]], rows: list[str], columns: list[str], **more: Any) -> Image.Image:
        drawn.update(cells=cells, rows=rows, columns=columns, title=more["title"])
        return labelled_sheet(cells, rows, columns, **more)

    monkeypatch.setattr("spheregen.data.labelled_sheet", draw)
    grid = ["--steps", "1,2", "--guidance", "1,3", "--score", 0]
    done(run, "sweep", lively, *grid, "-n", 4, "--seed", 5, "--labels", "8,1,3")
    assert (drawn["rows"], drawn["columns"]) == (["1 step", "2 steps"], ["guidance 1", "guidance 3"])
    assert drawn["title"] == f"{lively.name}: seeds 5 to 8"
    pipe = Pipeline.from_pretrained(lively, device="cpu", quiet=True)
    for steps, row in zip((1, 2), drawn["cells"], strict=True):
        for guidance, cell in zip((1.0, 3.0), row, strict=True):
            made = pipe.generate(4, seed=5, labels=[8, 1, 3, 8], steps=steps, guidance=guidance)
            torch.testing.assert_close(cell, made.tensor, atol=1e-4, rtol=0)
    assert (drawn["cells"][0][0] - drawn["cells"][0][1]).abs().max() > 0.01  # guidance shows, in a model like this one


# sample --like --------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(run: Run, lively: Path) -> Path:
    """A picture out of five; the third is of seed 12 and class 7."""
    done(run, "sample", lively, "-n", 5, "--seed", 10, "--labels", "3,8,7", "--out", "made", "--batch-size", 1)
    return Path("made/000012.png")


def test_like_repeats_a_picture_bit_for_bit(run: Run, made: Path) -> None:
    answer = done(run, "sample", "--like", made)
    assert (answer["count"], answer["seed"], answer["out"]) == (1, 12, "repeated")
    assert names("repeated") == ["000012.png"]
    assert Path("repeated/000012.png").read_bytes() == made.read_bytes()


def test_like_repeats_all_settings(run: Run, lively: Path) -> None:
    options = ["--steps", 3, "--schedule", "decay", "--guidance", 2, "--guidance-at", "latent", "--fresh-noise"]
    done(run, "sample", lively, "-n", 1, "--seed", 4, *options, "--out", "special")
    done(run, "sample", "--like", "special/000004.png")
    assert Path("repeated/000004.png").read_bytes() == Path("special/000004.png").read_bytes()
    answer = done(run, "sample", "--like", "special/000004.png", "--shared-noise", "--out", "shared")
    assert answer["share_noise"] and (answer["steps"], answer["guidance_at"]) == (3, "latent")


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        (["--steps", "1"], {"steps": "1"}),
        (["--guidance", "3"], {"guidance": "3.0"}),
        (["--guidance", "3", "--guidance-at", "pixel"], {"guidance": "3.0", "guidance_at": "pixel"}),
        (["--schedule", "decay"], {"schedule": "decay"}),
        (["--fresh-noise"], {"share_noise": "False"}),
        (["--labels", "1"], {"label": "1", "class": "1"}),
        (["--seed", "99"], {"seed": "99"}),
    ],
)
def test_like_with_a_changed_option(run: Run, made: Path, option: list[str], changed: dict[str, str]) -> None:
    answer = done(run, "sample", "--like", made, *option)
    before, after = read_metadata(made), read_metadata(Path(f"repeated/{answer['seed']:06d}.png"))
    assert {name for name in before if before[name] != after[name]} - {"settings"} == set(changed)
    assert {name: after[name] for name in changed} == changed
    assert (pixels(made) != pixels(f"repeated/{answer['seed']:06d}.png")).any()


def test_like_for_several_pictures_goes_on_with_the_seeds(run: Run, made: Path) -> None:
    done(run, "sample", "--like", made, "-n", 3)
    assert names("repeated") == ["000012.png", "000013.png", "000014.png"]
    assert {read_metadata(Path("repeated") / name)["label"] for name in names("repeated")} == {"7"}


def test_like_needs_the_model_where_it_is_now(
    run: Run, lively: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("near").mkdir()
    shutil.copytree(lively, "near/model")
    done(run, "sample", "near/model", "-n", 1, "--out", "relative")
    shutil.move("near/model", "elsewhere")
    before = contents()
    assert_one_line_error(run("sample", "--like", "relative/000000.png"), "near/model", "MODEL --like")
    assert contents() == before
    done(run, "sample", "elsewhere", "--like", "relative/000000.png")
    assert (pixels("repeated/000000.png") == pixels("relative/000000.png")).all()
    Path("deeper").mkdir()
    monkeypatch.chdir("deeper")
    done(run, "sample", "--like", Path("..") / made)  # its model was named by a whole path
    assert (pixels("repeated/000012.png") == pixels(Path("..") / made)).all()


def test_like_warns_of_other_weights(run: Run, lively: Path, made: Path) -> None:
    pipe = Pipeline.from_pretrained(lively, device="cpu", quiet=True)
    for parameter in pipe.model.parameters():
        parameter.mul_(1.01)
    pipe.save_pretrained("changed")
    assert "warning" not in run("sample", lively, "--like", made).err
    result = run("sample", "changed", "--like", made, "--out", "other")
    assert result.code == 0
    assert "warning" in result.err and "other weights" in result.err


def test_like_knows_classes_by_id(run: Run, model: Path) -> None:
    """Folders 0, 1, 10, 2 ... are sorted as text: class 2 is called "10", and class 3 "2"."""
    shutil.copytree(model, "model", ignore=shutil.ignore_patterns("state"))
    config = json.loads(Path("model/config.json").read_text())
    written = json.dumps(config).replace(json.dumps(list("0123456789")), json.dumps(["0", "1", "10", *"2345678"]))
    assert written != json.dumps(config)
    Path("model/config.json").write_text(written)
    done(run, "sample", "model", "-n", 1, "--seed", 2, "--out", "made")
    before = read_metadata(Path("made/000002.png"))
    assert (before["label"], before["class"]) == ("2", "10")
    done(run, "sample", "--like", "made/000002.png")
    assert read_metadata(Path("repeated/000002.png")) == before


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Notes every attempt to reach somebody."""
    attempts: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.mark.parametrize(
    "name", ["someone/model", "hf://someone/model", "someone/model@main", "", "~/model", "x" * 999]
)
def test_like_downloads_nothing_that_a_picture_names(run: Run, made: Path, no_network: list[object], name: str) -> None:
    metadata = read_metadata(made) | {"model": name}
    save_png(Image.open(made), Path("foreign.png"), metadata)
    before = contents()
    assert_one_line_error(run("sample", "--like", "foreign.png"), "MODEL --like")
    assert contents() == before
    assert not no_network


def test_like_of_a_picture_without_a_usable_record(run: Run, model: Path, made: Path) -> None:
    text = read_metadata(made)
    damaged: dict[str, dict[str, str]] = {
        "plain.png": {},
        "grid.png": {"seed": "3"},
        "no-json.png": {**text, "settings": "{"},
        "no-object.png": {**text, "settings": "[1]"},
        "no-steps.png": {**text, "settings": "{}"},
        "no-number.png": {**text, "seed": "twelve"},
        "text-steps.png": {**text, "settings": text["settings"].replace('"steps": ', '"steps": "a", "x": ')},
        "no-seed.png": {**text, "seed": "-1"},
        "no-class.png": {**text, "label": "77"},
    }
    for name, metadata in damaged.items():
        save_png(Image.new("L", (8, 8)), Path(name), metadata)
    Image.new("RGB", (8, 8)).save("photo.jpg")
    Path("text.png").write_text("no picture")
    done(run, "edit", model, made, "--out", "edited")
    before = contents()
    for name in (*damaged, "photo.jpg", "text.png", "missing.png", "made", "edited/000000-000012.png", "edited.png"):
        assert_one_line_error(run("sample", "--like", name))
        assert contents() == before, name
    assert "does not say how it was made" in run("sample", "--like", "plain.png").err
    assert "damaged record" in run("sample", "--like", "no-json.png").err
    assert "made by edit from other pictures" in run("sample", "--like", "edited/000000-000012.png").err


def test_like_does_not_overwrite_its_picture(run: Run, made: Path) -> None:
    before = contents()
    for options in (["--out", "made", "--steps", 1], ["--out", made], ["--out", "made", "--seed", 11, "-n", 3]):
        assert_one_line_error(run("sample", "--like", made, *options), "overwrite", "--out")
    assert contents() == before
    assert run("sample", "--like", made, "--out", "made", "--seed", 20).code == 0


# sample into archives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "grid"), [("x.zip", "x.png"), ("x.tar", "x.png"), ("part-%06d.tar", "part.png")])
def test_sample_into_an_archive(run: Run, model: Path, out: str, grid: str) -> None:
    answer = done(run, "sample", model, "-n", 7, "--out", out, "--labels", "4,2", "--seed", 3, "--shard-size", 3)
    assert (answer["count"], answer["grid"]) == (7, grid)
    assert Path(grid).is_file()
    source = open_source(out.replace("%06d", "*"))
    done(run, "sample", model, "-n", 7, "--out", "folder", "--labels", "4,2", "--seed", 3)
    expected: dict[int, list[object]] = {2: [], 4: []}
    for i in range(7):
        expected[(4, 2)[i % 2]].append(pixels(f"folder/{3 + i:06d}.png").tolist())
    assert source.labels is not None and source.class_names is not None
    found: dict[int, list[object]] = {2: [], 4: []}
    for i, label in enumerate(source.labels.tolist()):
        found[int(source.class_names[label])].append(np.asarray(source.read(i)).tolist())
    assert found == expected


def test_the_size_of_shards_is_read(run: Run, model: Path) -> None:
    done(run, "sample", model, "-n", 7, "--out", "part-%06d.tar", "--shard-size", 3)
    assert names() == ["classes.txt", "part-000000.tar", "part-000001.tar", "part-000002.tar", "part.png"]
    assert [len(open_source(f"part-{shard:06d}.tar")) for shard in range(3)] == [3, 3, 1]


# bad input ------------------------------------------------------------------------------------------------------------


BAD: list[tuple[list[str], list[str]]] = [
    (["edit", "MODEL", "text.txt"], ["text.txt", "not an image"]),
    (["edit", "MODEL", "photos/0.png", "text.txt"], ["text.txt", "not an image"]),
    (["edit", "MODEL", "missing.png"], ["missing.png"]),
    (["edit", "MODEL", "empty"], ["empty", ".png"]),
    (["edit", "MODEL", "9" * 300], ["999"]),
    (["edit", "MODEL", "photos", "--out", "file"], ["file is a file"]),
    (["edit", "MODEL", "photos", "--out", "file/below"], ["file is a file"]),
    (["edit", "MODEL", "photos", "--out", "photo.jpg"], ["neither a folder nor"]),
    (["edit", "MODEL", "photos", "--out", "9" * 300], ["999"]),
    (["edit", "MODEL", "photos/0.png", "--out", "photos/0.png"], ["overwrite", "--out"]),
    (["edit", "MODEL", "photos/0.png", "--out", "photos/0"], ["overwrite", "--out"]),
    (["edit", "MODEL", "photos", "--out", "photos/../photos/0"], ["overwrite", "--out"]),
    (["edit", "MODEL", "photos", "--batch-size", "0"], ["batch_size"]),
    (["edit", "MODEL", "photos", "--label", "10"], ["outside the 10 classes"]),
    (["edit", "MODEL", "photos", "--guidance", "2"], ["give labels"]),
    (["edit", "MODEL", "photos", "--label", "1", "--guidance-at", "pixels"], ["did you mean 'pixel'"]),
    (["edit", "MODEL", "photos", "--device", "cuda:9"], ["cuda:9"]),
    (["edit", "MODEL", "photos", "--split", "tset"], ["tset"]),
    (["edit", "empty", "photos"], ["not a model folder"]),
    (["edit", "text.txt", "photos"], ["is a file"]),
    (["crossover", "MODEL", "photos/0.png", "missing.png"], ["missing.png"]),
    (["crossover", "MODEL", "text.txt", "photos/0.png"], ["text.txt"]),
    (["crossover", "MODEL", "photos", "photos/0.png"], ["photos"]),
    (["crossover", "MODEL", "photos/0.png", "photos/1.png", "--mask", "left-rigth"], ["did you mean 'left-right'"]),
    (["crossover", "MODEL", "photos/0.png", "photos/1.png", "--mask", "large.png"], ["10 x 12"]),
    (["crossover", "MODEL", "photos/0.png", "photos/1.png", "--mask", "text.txt"], ["text.txt"]),
    (["crossover", "MODEL", "photos/0.png", "photos/1.png", "--out", "photos/1"], ["overwrite"]),
    (["vary", "MODEL", "missing.png"], ["missing.png"]),
    (["vary", "MODEL", "photos/0.png", "--count", "0"], ["at least 1"]),
    (["vary", "MODEL", "photos/0.png", "--angle", "181"], ["180"]),
    (["vary", "MODEL", "photos/0.png", "--angle", "nan"], ["180"]),
    (["vary", "MODEL", "photos/0.png", "--out", "photos/0.png"], ["overwrite"]),
    (["inpaint", "MODEL", "photos", "--mask", "missing.png"], ["missing.png"]),
    (["inpaint", "MODEL", "photos", "--mask", "text.txt"], ["text.txt"]),
    (["inpaint", "MODEL", "photos", "--mask", "large.png"], ["10 x 12", "24 x 24", "8 x 8"]),
    (["inpaint", "MODEL", "photos", "--mask", "mask.png", "--out", "mask.png"], ["overwrite"]),
    (["upscale", "MODEL", "photos"], ["24 px", "8 px", "factor"]),
    (["upscale", "MODEL", "photos", "--factor", "3"], ["8 px"]),
    (["upscale", "MODEL", "photos", "--factor", "0"], ["8 px"]),
    (["upscale", "MODEL", "missing"], ["missing"]),
    (["interpolate", "MODEL", "1"], ["two ends", "four corners"]),
    (["interpolate", "MODEL", "1", "2", "3"], ["two ends", "four corners"]),
    (["interpolate", "MODEL", "1", "missing.png"], ["missing.png"]),
    (["interpolate", "MODEL", "1", "text.txt"], ["text.txt"]),
    (["interpolate", "MODEL", "1", "9" * 5000], ["cannot be read"]),
    (["interpolate", "MODEL", "1", str(2**63)], ["2^63"]),
    (["interpolate", "MODEL", "1", "2", "--frames", "1"], ["at least 2"]),
    (["interpolate", "MODEL", "1", "2", "3", "4", "--frames", "101"], ["too many"]),
    (["interpolate", "MODEL", "1", "2", "--path", "slurp"], ["did you mean 'slerp'"]),
    (["interpolate", "MODEL", "1", "2", "--labels", "1,2,3"], ["3 labels"]),
    (["interpolate", "MODEL", "1", "2", "--labels", "1,"], ["not a list"]),
    (["interpolate", "MODEL", "1", "2", "--out", "way.webm"], [".gif", "way.webm"]),
    (["interpolate", "MODEL", "1", "2", "--out", "file"], ["file is a file"]),
    (["interpolate", "MODEL", "1", "2", "--out", "folder.gif"], ["is a folder"]),
    (["interpolate", "MODEL", "1", "2", "--out", "way.gif", "--fps", "0"], ["frames a second"]),
    (["interpolate", "MODEL", "1", "2", "--out", "way.gif", "--fps", "51"], ["50 frames a second"]),
    (["interpolate", "MODEL", "1", "2", "--bounce"], ["--bounce", ".gif"]),
    (["interpolate", "MODEL", "photos/0.png", "1", "--out", "photos/0.png"], ["overwrite"]),
    (["sweep", "MODEL", "--out", "sweep.jpg"], [".png"]),
    (["sweep", "MODEL", "--out", "empty"], [".png"]),
    (["sweep", "MODEL", "--out", "folder.png"], ["is a folder"]),
    (["sweep", "MODEL", "--steps", "1,two"], ["--steps", "1,2,4"]),
    (["sweep", "MODEL", "--steps", "0"], ["steps is at least 1"]),
    (["sweep", "MODEL", "--steps", ""], ["--steps"]),
    (["sweep", "MODEL", "--guidance", "1,-1"], ["not negative"]),
    (["sweep", "MODEL", "--guidance-at", "pixels"], ["did you mean 'pixel'"]),
    (["sweep", "MODEL", "--schedule", "fixed,decya"], ["did you mean 'decay'"]),
    (["sweep", "MODEL", "--noise", "none"], ["shared", "fresh"]),
    (["sweep", "MODEL", "--labels", "17"], ["10 classes"]),
    (["sweep", "MODEL", "--count", "0"], ["--count"]),
    (["sweep", "MODEL", "--score", "-1"], ["--score"]),
    (["sweep", "MODEL", "--count", "9999"], ["too many"]),
    (["sweep", "empty"], ["not a model folder"]),
    (["sample"], ["name a model"]),
    (["sample", "MODEL", "--out", "folder.png"], ["is a folder"]),
    (["sample", "MODEL", "--out", f"{'9' * 300}.png"], ["999"]),
    (["sample", "MODEL", "--out", "part-%06d.zip"], ["%06d"]),
    (["sample", "MODEL", "--out", "sub.zip"], ["sub.zip is a folder"]),
    (["sample", "MODEL", "--out", "part-%06d.tar", "--shard-size", "0"], ["shard_size"]),
    (["sample", "MODEL", "--out", "x.zip", "--labels", "77"], ["10 classes"]),
    (["sample", "MODEL", "--out", "x.tar", "--steps", "0"], ["steps is at least 1"]),
    (["sample", "MODEL", "--out", "grid.png", "--count", "10001"], ["too large"]),
    (["reconstruct", "MODEL", "photos", "--out", "photo.jpg"], ["neither a folder nor"]),
    (["reconstruct", "MODEL", "photos/0.png", "--out", "photos/0.png"], ["overwrite"]),
]
for command, given in EDITS.items():
    BAD += [
        ([command, "MODEL", *given, "--steps", "0"], ["steps is at least 1"]),
        ([command, "MODEL", *given, "--label", "seven"], ["unknown class 'seven'"]),
        ([command, "MODEL", *given, "--schedule", "decya"], ["did you mean 'decay'"]),
        ([command, "MODEL", *given, "--strength", "-1"], ["strength"]),
        ([command, "MODEL", *given, "--seed", "-1"], ["seed"]),
        ([command, "MODEL", *given, "--out", "file"], ["file is a file"]),
        ([command, "MODEL", *given, "--out", "folder.png"], ["is a folder"]),
        ([command, "nowhere", *given], ["there is no model"]),
    ]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("arguments", "parts"), BAD, ids=[" ".join(case[0])[:100] for case in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(
    run: Run, model: Path, arguments: list[str], parts: list[str]
) -> None:
    Path("file").write_text("precious")
    Path("text.txt").write_text("I am no picture")
    for folder in ("empty", "folder.png", "folder.gif", "sub.zip"):
        Path(folder).mkdir()
    Image.new("L", (10, 12)).save("large.png")
    before, listing = contents(), sorted(os.walk("."))

    result = run(*(str(model) if argument == "MODEL" else argument for argument in arguments))

    assert_one_line_error(result, *parts)
    assert (contents(), sorted(os.walk("."))) == (before, listing)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", ["edit", "inpaint", "upscale", "reconstruct"])
def test_a_bad_picture_late_leaves_no_half_archive(run: Run, model: Path, command: str) -> None:
    """It is read when others are written already: no archive is better than one that lacks pictures."""
    Path("many").mkdir()
    for number in range(70):
        Image.new("L", (8, 8), number).save(f"many/{number:02d}.png")
    Path("many/69.png").write_text("no picture")
    before = contents()
    options = [] if command == "reconstruct" else [*EDITS[command][1:]]
    result = run(command, model, "many", *options, "--out", "made.zip", "--quiet")
    assert result.code == 2
    assert "69.png" in result.err.splitlines()[-1] and result.err.splitlines()[-1].startswith("error: ")
    assert contents() == before


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", EDITS)
def test_a_full_disk(run: Run, model: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    before = contents()
    monkeypatch.setattr(Path, "replace", full_disk)
    for out in ("made", "made.png", "made.zip"):
        assert_one_line_error(run(command, model, *EDITS[command], "--out", out), "No space left on device")
        assert contents() == before
