"""`spheregen evaluate` and `spheregen stats --features`, as users call them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spheregen.evaluation.reference import load_reference
from tests.cli.conftest import Run


def test_figures_come_with_their_recipe(run: Run) -> None:
    first = run("evaluate", "digits", "-n", "200", "--seed", "3", "--steps", "1")
    assert first.code == 0, first.err
    assert first.out.startswith("FD-own ")
    assert "200 samples of digits" in first.out and "seeds 3 to 202" in first.out and " 1 step," in first.out
    answer = run("evaluate", "digits", "-n", "200", "--seed", "3", "--steps", "1", "--json").json
    assert answer["line"] == first.out.strip()
    assert answer["protocol"]["count"] == 200
    assert answer["data"]["source"] == "digits"


def test_a_reference_file_gives_the_same_figures_as_the_data(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    record = run("stats", "digits", "--features", "own", "--set", "channels=1", "--out", file, "--json").json
    assert record["count"] == record["kept"] == 1400 and record["image_size"] == 8
    assert load_reference(file).gaussian.count == 1400
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"], "no work is left behind"
    by_data = run("evaluate", "digits", "-n", "100", "--json").json
    by_file = run("evaluate", "digits", "-n", "100", "--reference", file, "--json").json
    assert by_file["metrics"]["own"]["figures"] == by_data["metrics"]["own"]["figures"]
    assert by_file["metrics"]["own"]["reference"]["file"] == "own.safetensors"


def test_samples_in_a_folder_are_scored(run: Run, tmp_path: Path) -> None:
    assert run("sample", "digits", "-n", "60", "--out", str(tmp_path / "samples")).code == 0
    direct = run("evaluate", "digits", "-n", "60", "--metrics", "frechet", "--json").json
    saved = run("evaluate", "--images", str(tmp_path / "samples"), "--data", "digits", "--metrics", "frechet", "--json")
    assert saved.json["metrics"]["own"]["figures"] == direct["metrics"]["own"]["figures"]


def test_a_reference_of_padded_images_is_refused_for_a_model_of_cropped_ones(run: Run) -> None:
    made = run(
        "stats", "digits", "--features", "own", "--set", "channels=1", "--set", "fit=pad", "--out", "pad.safetensors"
    )
    assert made.code == 0, made.err
    run("evaluate", "digits", "-n", "20", "--reference", "pad.safetensors").fails("fit=crop")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    (tmp_path / "broken.safetensors").write_text("no")
    for number, size in enumerate(((8, 8), (9, 9))):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        Image.new("L", size).save(tmp_path / "mixed" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a model"),
        (["digits", "--images", "x"], "one of the two"),
        (["digits", "--features", "owl"], "did you mean 'own'"),
        (["digits", "--features", "own,own"], "twice"),
        (["digits", "--metrics", "fid"], "frechet"),
        (["digits", "--metrics", "kid", "-n", "50"], "1000"),
        (["digits", "--metrics", "cmmd"], "unit norm"),
        (["digits", "-n", "1"], "at least 2"),
        (["digits", "--steps", "0"], "at least 1"),
        (["digits", "--quantise", "ceil"], "round or floor"),
        (["digits", "--split", "valid"], "valid"),
        (["digits", "--held-out", "train"], "cannot be held out"),
        (["digits", "--held-out", "nosuch"], "nosuch"),
        (["digits", "--data", "/no/such"], "/no/such"),
        (["nosuch"], "nosuch"),
        (["digits", "--reference", "BAD/missing.npz"], "missing.npz"),
        (["digits", "--reference", "BAD/broken.safetensors"], "broken"),
        (["digits", "--reference", "BAD/other.npz"], "inception"),
        (["digits", "--reference", "own=BAD/other.npz"], "7 numbers"),
        (["--images", "BAD/mixed", "--data", "digits"], "9 x 9"),
        (["--images", "BAD/mixed", "--report", "BAD/r"], "need a model"),
        (["digits", "--study", "sphered", "--report", "BAD/r"], "did you mean 'sphere'"),
        (["digits", "--curve", "steps=0", "--report", "BAD/r"], "at least 1"),
        (["digits", "--curve", "noise=shared", "--steps", "1", "--report", "BAD/r"], "one step"),
        (["digits", "--report", "BAD/other.npz"], "is a file"),
        (["stats", "digits", "--features", "own", "--out", "BAD/x.png"], ".safetensors"),
        (["stats", "digits", "--features", "own", "--set", "fit=squash"], "squash"),
        (["stats", "BAD/mixed", "--features", "own"], "--image-size"),
        (["stats", "digits", "--features", "nosuch:factory", "--out", "BAD/x.safetensors"], "nosuch"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run: Run, bad: Path, arguments: list[str], said: str) -> None:
    before = sorted(bad.rglob("*"))
    command = [] if arguments[:1] == ["stats"] else ["evaluate"]
    run(*command, *(argument.replace("BAD", str(bad)) for argument in arguments)).fails(said)
    assert sorted(path for path in bad.rglob("*") if path.suffix in (".html", ".json")) == []
    if "--report" not in arguments:
        assert sorted(bad.rglob("*")) == before


def test_a_run_with_a_flow_says_how_it_was_refined(run: Run) -> None:
    assert run("train", "flow-debug", "--set", "train.steps=4", "--out", "run", "--device", "cpu", "-q").code == 0
    words = ["--data", "digits", "--count", 40, "--metrics", "frechet"]
    assert "refined in 2 steps by heun" in run("evaluate", "run", *words, "--json", "-q").json["line"]
