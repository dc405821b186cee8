"""The commands that change, join, vary, restore, refine and compare images."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spheregen.data import open_source, read_metadata, save_png
from spheregen.folders.model_folder import ModelInfo, model_fingerprint, save_model
from tests.cli.conftest import Run, contents, names, pixels, sheet_size
from tests.factories import NAMES, image_folder, tiny_refined

Done = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("pictures")

EDITS: dict[str, list[str]] = {  # command -> its arguments behind the model
    "edit": ["photos", "--labels", "3", "--steps", "2"],
    "crossover": ["photos/000.png", "photos/001.png", "--steps", "2"],
    "vary": ["photos/000.png", "--count", "3"],
    "inpaint": ["photos", "--mask", "mask.png", "--steps", "2"],
    "upscale": ["photos", "--factor", "2", "--steps", "2"],
}
BOTH = ["000000-000.png", "000001-001.png"]
WRITTEN = dict.fromkeys(EDITS, BOTH) | {
    "crossover": ["000000-000-001.png"],
    "vary": ["000000-000.png", "000001-000.png", "000002-000.png"],
}
SHEETS = {"edit": (3, 2), "crossover": (4, 1), "vary": (4, 1), "inpaint": (4, 2), "upscale": (3, 2)}
OPTIONS = ["--steps", 3, "--guidance", 2.5, "--strength", 0.9, "--labels", "7"]
SETTINGS = ["--set", "guidance_at=pixel", "--set", "share_noise=false", "--set"]
USED = {"steps": 3, "guidance": 2.5, "strength": 0.9, "guidance_at": "pixel", "share_noise": False}


def size(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize("command", EDITS)
def test_an_edit_writes_single_images_and_a_sheet(run: Run, done: Done, model: Path, command: str) -> None:
    answer = done(command, model, *EDITS[command], "--out", "made", "--seed", 5)
    assert names("made") == WRITTEN[command]
    assert (answer["edit"], answer["seed"], answer["count"]) == (command, 5, len(WRITTEN[command]))
    assert (answer["out"], answer["sheet"]) == ("made", "made.png")
    assert size("made.png") == sheet_size(*SHEETS[command])
    for number, name in enumerate(WRITTEN[command]):
        metadata = read_metadata(Path("made") / name)
        assert (metadata["edit"], metadata["seed"], metadata["image"]) == (command, str(5 + number), name[7:-4])
        assert (metadata["model"], metadata["fingerprint"]) == (str(model), model_fingerprint(model))
        assert size(f"made/{name}") == (8, 8)
    assert read_metadata(Path("made.png"))["model"] == str(model)
    before = set(names())
    result = run(command, model, *EDITS[command], "--out", "alone.png")
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1) and "alone.png" in result.err
    assert set(names()) - before == {"alone.png"}


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("edit", {}),
        ("crossover", {"mask": "top-bottom"}),
        ("crossover", {"mask": "mask.png"}),
        ("vary", {"angle": 80.0}),
        ("inpaint", {}),
        ("upscale", {"factor": 4}),
        ("interpolate", {"path": "lerp", "frames": 5}),
    ],
)
def test_each_option_is_read(done: Done, model: Path, command: str, own: dict[str, Any]) -> None:
    """What was used is in the answer; that each changes the images is tested of the pipeline."""
    schedule = [1, 0.5] if command in ("vary", "interpolate") else [1, 0.5, 0.25]  # the first step of those decodes
    arguments = ["1", "12"] if command == "interpolate" else EDITS[command]
    words = [*OPTIONS, *SETTINGS, f"schedule={schedule}", *(w for name in own for w in (f"--{name}", own[name]))]
    used = USED
    if command in ("inpaint", "upscale"):
        used = {**USED, "angle": 30.0}
        del used["strength"]
        words = [
            "--labels",
            "7",
            "--steps",
            3,
            "--set",
            "angle=30.0",
            "--set",
            "guidance=2.5",
            *words[words.index("--set") :],
        ]
    answer = done(command, model, *arguments, *words, "--out", "made")
    expected = used | own | {"schedule": schedule}
    assert {name: answer[name] for name in expected} == expected
    text = read_metadata(min(Path("made").iterdir()))
    assert text.get("label", text.get("labels")) == "7"


def test_labels_are_taken_in_turn(done: Done, model: Path) -> None:
    done("edit", model, "photos", "--labels", "3,7", "--out", "made")
    assert [read_metadata(Path("made") / name)["label"] for name in BOTH] == ["3", "7"]
    done("edit", model, "photos/001.png", "--labels", "7", "--seed", 1, "--out", "one.zip")
    assert np.abs(pixels("made/000001-001.png") - np.asarray(open_source("one.zip").read(0)).astype(int)).max() <= 1


def test_a_data_set_is_edited_in_parts(run: Run, model: Path) -> None:
    """70 images are read and written in several parts; seeds and labels go on over them."""
    image_folder(Path("many"), classes=0, per_class=70)
    result = run("edit", model, "many", "--steps", 1, "--out", "made", "--seed", 100, "--labels", "1,2,3")
    assert result.code == 0 and "70/70" in result.err
    made = names("made")
    text = [read_metadata(Path("made") / made[i]) for i in (0, 64, 69)]
    assert [(each["seed"], each["label"]) for each in text] == [("100", "1"), ("164", "2"), ("169", "1")]
    assert len(made) == 70 and size("made.png") == sheet_size(2, 20)


def test_variations_are_made_in_parts_and_wrap_behind_the_image(done: Done, model: Path) -> None:
    done("vary", model, "photos/000.png", "--count", 66, "--out", "many")
    done("vary", model, "photos/000.png", "--count", 1, "--seed", 65, "--out", "one")
    assert len(names("many")) == 66
    assert np.abs(pixels("many/000065-000.png") - pixels("one/000000-000.png")).max() <= 1
    done("vary", model, "photos/000.png", "--count", 10, "--out", "made.png")
    assert size("made.png") == sheet_size(8, 2)
    sheet = pixels("made.png")
    assert (sheet[2:66, 2:66] == sheet[68:132, 2:66]).all()  # each row begins with the image
    assert (sheet[68:132, 4 * 66 + 2 :] == 255).all()


def test_known_pixels_stay_and_small_images_head_their_row(done: Done, model: Path) -> None:
    save_png(Image.open("photos/000.png").convert("L").resize((8, 8)), Path("small.png"))
    done("inpaint", model, "small.png", "--mask", "mask.png", "--out", "made")
    before, after = pixels("small.png"), pixels("made/000000-small.png")
    assert (before[:4] == after[:4]).all() and (before[4:] != after[4:]).any()
    tiny = np.array([[10, 200], [90, 130]], dtype=np.uint8)
    Image.fromarray(tiny).save("tiny.png")
    assert done("upscale", model, "tiny.png", "--out", "large.png", "--steps", 1)["factor"] == 4
    assert (pixels("large.png")[2:66, 2:66] == tiny.repeat(32, 0).repeat(32, 1)).all()


def test_odd_names_become_file_names(done: Done, model: Path) -> None:
    shutil.copy("photos/000.png", "a\nb é.c.png")
    shutil.copy("photos/000.png", f"{'x' * 250}.png")
    done("edit", model, "a\nb é.c.png", f"{'x' * 250}.png", "--steps", 1, "--out", "made")
    assert names("made") == ["000000-a-b-é-c.png", f"000001-{'x' * 120}.png"]


def test_reconstructions_and_their_comparison(run: Run, done: Done, model: Path) -> None:
    Image.new("RGBA", (30, 20), (200, 10, 10, 128)).save("photo.png")
    answer = done("reconstruct", model, "photo.png", "photos", "--out", "only.png")
    assert (answer["count"], answer["comparison"]) == (3, "only.png") and 0 < answer["psnr"] < 60
    assert done("reconstruct", model, "photo.png", "--out", "all.zip")["comparison"] == "all.png"
    assert "PSNR" in run("reconstruct", model, "photo.png", "--out", "folder").err
    assert names("folder") == ["000000-photo.png", "comparison.png"]
    assert pixels("folder/000000-photo.png").tolist() == np.asarray(open_source("all.zip").read(0)).tolist()
    assert read_metadata(Path("folder/000000-photo.png"))["fingerprint"] == model_fingerprint(model)


# interpolate ----------------------------------------------------------------------------------------------------------


def test_a_strip_of_frames_a_square_and_an_archive(done: Done, model: Path) -> None:
    answer = done("interpolate", model, 3, 14, "--frames", 5, "--out", "way.png")
    assert (answer["count"], answer["edit"], answer["ends"]) == (5, "interpolate", ["3", "14"])
    assert size("way.png") == sheet_size(5, 1)
    metadata = read_metadata(Path("way.png"))
    assert (metadata["ends"], metadata["frames"], metadata["seed"]) == ("3, 14", "5", "3")
    assert done("interpolate", model, 1, 2, 3, 4, "--frames", 3, "--out", "square.png")["count"] == 9
    assert size("square.png") == sheet_size(3, 3)
    done("interpolate", model, 1, 2, "--frames", 3, "--out", "way.zip")
    assert len(open_source("way.zip")) == 3


def test_the_ends_are_what_sample_and_reconstruct_make(done: Done, model: Path) -> None:
    shutil.copy("photos/001.png", "7")  # a file that is called like a seed wins
    done("interpolate", model, 3, 5, "--labels", "2,7", "--frames", 4, "--out", "seeds")
    for seed, label, frame in ((3, 2, 0), (5, 7, 3)):
        done("sample", model, "-n", 1, "--seed", seed, "--labels", label, "--steps", 1, "--out", f"{seed}s")
        assert np.abs(pixels(f"{seed}s/{seed:06d}.png") - pixels(f"seeds/{frame:06d}.png")).max() <= 1
    assert [read_metadata(Path(f"seeds/{frame:06d}.png"))["frame"] for frame in range(4)] == list("0123")
    mixed = done("interpolate", model, "7", 8, "--frames", 2, "--out", "mixed")
    done("reconstruct", model, "photos/001.png", "--out", "again")
    assert np.abs(pixels("mixed/000000.png") - pixels("again/000000-001.png")).max() <= 1
    Path("7").unlink()
    seeds = done("interpolate", model, "7", 8, "--frames", 2, "--out", "mixed")
    assert (mixed["strength"], seeds["strength"]) == (0.25, 1.0)
    ends = ["photos/000.png", "photos/001.png", "--frames", 2, "--steps", 2, "--strength", 1]
    for seed in (0, 1):  # of the noise of later steps
        done("interpolate", model, *ends, "--seed", seed, "--out", f"seed{seed}")
    assert (pixels("seed0/000000.png") != pixels("seed1/000000.png")).any()


@pytest.mark.parametrize(("options", "frames"), [([], 5), (["--bounce"], 8)])
def test_an_animation(done: Done, model: Path, options: list[str], frames: int) -> None:
    done("interpolate", model, 1, 12, "--frames", 5, "--fps", 10, "--out", "way.gif", *options)
    with Image.open("way.gif") as animation:
        assert getattr(animation, "n_frames", 1) == frames
        assert animation.info["duration"] == 100 and animation.size == (256, 256)


def test_a_missing_ffmpeg_is_told_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    run("interpolate", "nowhere", 1, 2, "--out", "way.mp4").fails("ffmpeg")


# a flow behind the model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "model"
    sampling = {"steps": 1, "refinement_steps": 2, "solver": "euler", "guidance": 1.5}
    save_model(folder, tiny_refined(), ModelInfo(class_names=NAMES, sampling=sampling))
    return folder


def test_samples_say_how_they_were_refined_and_are_made_again(done: Done, flow: Path) -> None:
    answer = done("sample", flow, "-n", 3, "--out", "made")
    assert (answer["refinement_steps"], answer["solver"], answer["refinement_guidance"]) == (2, "euler", 1.5)
    done("sample", flow, "--like", "made/000001.png", "--out", "again")
    assert Path("again/000001.png").read_bytes() == Path("made/000001.png").read_bytes()
    other = ["--set", "refinement_steps=3", "--set", "solver=heun", "--set", "refinement_guidance=1"]
    told = done("sample", flow, "--like", "made/000001.png", *other, "--out", "other")
    assert (told["refinement_steps"], told["solver"], told["refinement_guidance"]) == (3, "heun", 1.0)
    assert Path("other/000001.png").read_bytes() != Path("made/000001.png").read_bytes()


def test_photos_are_refined_and_reconstructions_too(run: Run, done: Done, flow: Path) -> None:
    assert done("refine", flow, "photos", "--labels", "dog", "--seed", 5, "--out", "fine")["edit"] == "refine"
    assert names("fine") == BOTH and size("fine.png") == sheet_size(2, 2)
    assert read_metadata(Path("fine/000001-001.png"))["seed"] == "6"
    psnr = [
        done("reconstruct", flow, "photos", "--set", f"refinement_steps={steps}", "--out", "r.png")["psnr"]
        for steps in (0, 2)
    ]
    rough = done("reconstruct", flow / "source", "photos", "--out", "r.png")["psnr"]
    assert psnr[0] == pytest.approx(rough, abs=1e-3) and abs(psnr[0] - psnr[1]) > 1e-3
    run("refine", flow / "source", "photos").fails("no refiner")
    run("sample", flow, "--set", "solver=hune").fails("heun")


# mistakes -------------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, str]] = [
    ("edit MODEL photos/000.png text.txt", "text.txt"),
    ("edit MODEL empty", "empty"),
    ("edit MODEL " + "9" * 300, "999"),
    ("edit MODEL photos --out file/below", "file is a file"),
    ("edit MODEL photos --out photo.jpg", "photo.jpg"),
    ("edit MODEL photos --out folder.png", "is a folder"),
    ("edit MODEL photos/000.png --out photos/000.png", "overwrite"),
    ("edit MODEL photos --out photos/../photos/000", "overwrite"),
    ("edit MODEL photos --labels 10", "10 classes"),
    ("edit MODEL digits --split tset", "tset"),
    ("edit empty photos", "not a model folder"),
    ("crossover MODEL photos/000.png missing.png", "missing.png"),
    ("crossover MODEL photos photos/000.png", "photos"),
    ("crossover MODEL photos/000.png photos/001.png --mask left-rigth", "did you mean 'left-right'"),
    ("crossover MODEL photos/000.png photos/001.png --mask large.png", "10 x 12"),
    ("crossover MODEL photos/000.png photos/001.png --labels 1,2", "--labels"),
    ("crossover MODEL photos/000.png photos/001.png --out photos/001", "overwrite"),
    ("vary MODEL photos/000.png --count 0", "--count"),
    ("inpaint MODEL photos", "--mask"),
    ("inpaint MODEL photos --mask text.txt", "text.txt"),
    ("inpaint MODEL photos --mask mask.png --out mask.png", "overwrite"),
    ("reconstruct MODEL photos --out photo.jpg", "photo.jpg"),
    ("reconstruct MODEL photos/000.png --out photos/000.png", "overwrite"),
    ("interpolate MODEL 1 text.txt", "text.txt"),
    ("interpolate MODEL 1 " + str(2**63), "2^63"),
    ("interpolate MODEL 1 2 3 4 --frames 101", "101"),
    ("interpolate MODEL 1 2 --labels 1,2,3", "3 labels"),
    ("interpolate MODEL 1 2 --out way.webm", "way.webm"),
    ("interpolate MODEL 1 2 --out way.gif --fps 51", "50 frames"),
    ("interpolate MODEL 1 2 --bounce", "--bounce"),
    ("interpolate MODEL photos/000.png 1 --out photos/000.png", "overwrite"),
]


def test_mistakes_are_one_line_and_leave_nothing(run: Run, model: Path) -> None:
    Path("file").write_text("precious")
    Path("text.txt").write_text("I am no image")
    for folder in ("empty", "folder.png"):
        Path(folder).mkdir()
    Image.new("L", (10, 12)).save("large.png")
    before, listing = contents(), sorted(os.walk("."))
    for line, named in BAD:
        run(*(str(model) if word == "MODEL" else word for word in line.split())).fails(named)
        assert (contents(), sorted(os.walk("."))) == (before, listing), line


@pytest.mark.parametrize("command", ["edit", "reconstruct"])
def test_a_bad_image_late_leaves_no_half_archive(run: Run, model: Path, command: str) -> None:
    """It is read when others are written already: no archive is better than one that lacks images."""
    Path("many/69.png").parent.mkdir()
    for number in range(69):
        Image.new("L", (8, 8), number).save(f"many/{number:02d}.png")
    Path("many/69.png").write_text("no image")
    before = contents()
    run(command, model, "many", "--out", "made.zip", "-q").fails("69.png")
    assert contents() == before


@pytest.mark.parametrize("command", ["edit", "vary"])
def test_a_full_disk(run: Run, model: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    before = contents()
    monkeypatch.setattr(Path, "replace", full_disk)
    for out in ("made", "made.png", "made.zip"):
        run(command, model, *EDITS[command], "--out", out).fails("No space left on device")
        assert contents() == before
