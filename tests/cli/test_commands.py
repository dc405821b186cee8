"""The commands, as a user types them: what they print and write, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spheregen
from spheregen.data import read_metadata
from tests.cli.conftest import Result, Run


def assert_one_line_error(result: Result, *parts: str) -> None:
    assert result.code == 2, result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err


def test_version(run: Run) -> None:
    assert run("--version").out.strip() == spheregen.__version__


def test_recipes(run: Run) -> None:
    listed = json.loads(run("recipes", "--json").out)
    assert {"digits", "cifar10", "imagenet-xl"} <= {recipe["name"] for recipe in listed}
    assert all(recipe["description"] in run("recipes").out for recipe in listed)
    yaml = run("recipes", "digits").out
    Path("own.yaml").write_text(yaml)
    assert run("train", "own.yaml", "--dry-run").code == 0


def test_info_of_a_recipe_and_a_model(run: Run, model: Path) -> None:
    answer = json.loads(run("info", "cifar10", "--json").out)
    assert answer["encoder"]["params"] == pytest.approx(129.8e6, rel=1e-3)
    assert answer["generation_gflops"]["guided"]["4"] == pytest.approx(2 * answer["generation_gflops"]["unguided"]["4"])
    assert set(answer["generation_gflops"]["unguided"]) == {"1", "2", "4", "6"}
    of_model, of_recipe = (json.loads(run("info", target, "--json").out) for target in (model, "debug"))
    assert of_model["decoder"] == of_recipe["decoder"]
    assert "GFLOPs" in run("info", model).out


def test_train_writes_a_model_and_continues(run: Run) -> None:
    first = run("train", "debug", "--set", "train.steps=3", "--out", "here", "--quiet")
    assert first.code == 0, first.err
    assert "images/s" in first.err
    again = run("train", "debug", "--set", "train.steps=3", "--out", "here", "--json")
    assert json.loads(again.out)["steps_done_now"] == 0
    assert_one_line_error(run("train", "debug", "--set", "train.steps=5", "--out", "here"), "train.steps: 3 -> 5")


def test_dry_run_writes_nothing(run: Run) -> None:
    result = run("train", "digits", "--dry-run", "--set", "optimizer.lr=5e-4", "--json")
    assert json.loads(result.out)["optimizer"]["lr"] == 5e-4
    assert not list(Path().iterdir())


def test_sample_into_a_folder(run: Run, model: Path) -> None:
    result = run("sample", model, "-n", 5, "--out", "pictures", "--labels", "3,7", "--seed", 10, "--steps", 2, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["steps"] == 2
    names = sorted(path.name for path in Path("pictures").iterdir())
    assert names == [f"{seed:06d}.png" for seed in range(10, 15)]
    assert Path("pictures.png").is_file()  # the grid, beside the folder
    metadata = read_metadata(Path("pictures/000011.png"))
    assert (metadata["seed"], metadata["label"], metadata["steps"], metadata["guidance"]) == ("11", "7", "2", "1.0")
    with Image.open("pictures/000010.png") as picture:
        assert picture.mode == "L" and picture.size == (8, 8)


def test_sample_is_the_same_alone_and_among_others(run: Run, model: Path) -> None:
    run("sample", model, "-n", 12, "--out", "many", "--batch-size", 5)
    run("sample", model, "-n", 1, "--seed", 11, "--out", "one")
    many, one = (np.asarray(Image.open(f"{folder}/000011.png")).astype(int) for folder in ("many", "one"))
    assert np.abs(many - one).max() <= 1  # 2e-5 may tip the rounding to 8 bits


def test_sample_one_grid(run: Run, model: Path) -> None:
    assert run("sample", model, "--out", "grid.png").code == 0
    assert [path.name for path in Path().iterdir()] == ["grid.png"]


def test_reconstruct_photos_and_data_sets(run: Run, model: Path) -> None:
    Image.new("RGBA", (30, 20), (200, 10, 10, 128)).save("photo.png")
    result = run("reconstruct", model, "photo.png", "digits", "--split", "test", "--no-pictures", "--json")
    answer = json.loads(result.out)
    assert answer["count"] == 398
    assert 0 < answer["psnr"] < 60
    assert [path.name for path in Path("reconstructions").iterdir()] == ["comparison.png"]
    run("reconstruct", model, "photo.png", "--out", "again")
    assert sorted(path.name for path in Path("again").iterdir()) == ["000000-photo.png", "comparison.png"]


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(spheregen.SphereGenError):
        run("sample", "nowhere", "--debug")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "digitz"], ["did you mean 'digits'"]),
        (["train", "debug", "--set", "train.stepz=3"], ["unknown key train.stepz", "did you mean 'steps'"]),
        (["train", "debug", "--data", "missing"], ["missing"]),
        (["train", "debug", "--data", "empty"], ["empty", ".png"]),
        (["train", "debug", "--data", "faulty"], ["broken.jpg"]),
        (["train", "debug", "--data", "texts"], ["text.png"]),
        (["train", "debug", "--out", "file"], ["file is a file"]),
        (["train", "debug", "--out", "file/below"], ["file is a file"]),
        (["train", "cifar10"], ["--data"]),
        (["train", "debug", "--device", "cuda:9"], ["cuda:9"]),
        (["sample", "MODEL", "--labels", "10"], ["outside the 10 classes"]),
        (["sample", "MODEL", "--labels", "seven"], ["unknown class 'seven'"]),
        (["sample", "MODEL", "--labels", "1,,2"], ["not a list"]),
        (["sample", "MODEL", "--steps", "0"], ["steps is at least 1"]),
        (["sample", "MODEL", "--schedule", "decya"], ["did you mean 'decay'"]),
        (["sample", "MODEL", "--guidance-at", "pixels"], ["did you mean 'pixel'"]),
        (["sample", "MODEL", "--guidance", "-1"], ["not negative"]),
        (["sample", "MODEL", "--count", "0"], ["at least 1"]),
        (["sample", "MODEL", "--seed", "-3"], ["seed"]),
        (["sample", "MODEL", "--batch-size", "0"], ["batch_size"]),
        (["sample", "MODEL", "--out", "file"], ["file is a file"]),
        (["sample", "missing"], ["there is no model"]),
        (["sample", "empty"], ["not a model folder"]),
        (["sample", "truncated"], ["truncated"]),
        (["reconstruct", "MODEL", "texts/text.png"], ["text.png", "not an image"]),
        (["reconstruct", "MODEL", "missing.png"], ["missing.png"]),
        (["info", "digitz"], ["did you mean"]),
        (["recipes", "digitz"], ["did you mean"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, model: Path, arguments: list[str], parts: list[str]) -> None:
    Path("file").write_text("precious")
    Path("empty").mkdir()
    for label in range(10):
        Path(f"faulty/{label}").mkdir(parents=True)
        Image.new("L", (8, 8), label * 20).save(f"faulty/{label}/good.png")
        Path(f"texts/{label}").mkdir(parents=True)
        Image.new("L", (8, 8), label * 20).save(f"texts/{label}/good.png")
    Image.new("RGB", (64, 64)).save("whole.jpg")
    Path("faulty/3/broken.jpg").write_bytes(Path("whole.jpg").read_bytes()[:300])
    Path("whole.jpg").unlink()
    Path("texts/text.png").write_text("I am no picture")
    Path("texts/text.png").replace("texts/3/text.png" if "texts" in arguments else "texts/text.png")
    Path("truncated").mkdir()
    Path("truncated/config.json").write_bytes((model / "config.json").read_bytes())
    Path("truncated/model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    result = run(*(str(model) if argument == "MODEL" else argument for argument in arguments))

    assert_one_line_error(result, *parts)
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}  # nothing half-written


def test_skipping_bad_files_by_option(run: Run) -> None:
    for label in range(10):
        Path(f"images/{label}").mkdir(parents=True)
        Image.new("L", (8, 8), label * 20).save(f"images/{label}/good.png")
    Path("images/3/broken.jpg").write_bytes(b"")
    result = run("train", "debug", "--data", "images", "--set", "data.on_error=skip", "--set", "train.steps=2")
    assert result.code == 0, result.err
    assert "skipped" in result.err and "broken.jpg" in result.err


def test_a_full_disk_while_sampling(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    result = run("sample", model, "--out", "pictures", "--count", 2)
    assert_one_line_error(result, "No space left on device")
    assert not [path for path in Path().rglob("*") if path.is_file()]
