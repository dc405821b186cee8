"""`spheregen evaluate` and `spheregen stats --features`, as users call them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spheregen.evaluation.reference import load_reference
from tests.cli.conftest import Run

HELD = ("--split", "test")
"""Few real images, so that little is computed."""


def test_figures_come_with_their_recipe(run: Run) -> None:
    shown = run("evaluate", "digits", *HELD, "-n", 60, "--seed", 3, "--steps", 1, "--metrics", "frechet")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("FD-own ")
    assert "60 samples of digits" in shown.out and "seeds 3 to 62" in shown.out and " 1 step," in shown.out


def test_reference_files_and_saved_samples_give_the_same_figures(run: Run, tmp_path: Path) -> None:
    """As the data and the model themselves do."""
    own = ("stats", "digits", *HELD, "--features", "own", "--set", "channels=1")
    record = run(*own, "--out", "own.safetensors", "--json").json
    assert record["count"] == record["kept"] == 397 and record["image_size"] == 8
    assert load_reference(tmp_path / "own.safetensors").gaussian.count == 397
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"], "no work is left behind"
    score = ("-n", 60, "--metrics", "frechet", "--json")
    direct = run("evaluate", "digits", *HELD, *score).json
    assert direct["protocol"]["count"] == 60 and direct["data"]["source"] == "digits"
    by_file = run("evaluate", "digits", "--reference", "own.safetensors", *score).json
    assert by_file["metrics"]["own"]["reference"]["file"] == "own.safetensors"
    assert run("sample", "digits", "-n", 60, "--out", "samples").code == 0
    saved = run("evaluate", "--images", "samples", "--data", "digits", *HELD, *score).json
    for other in (by_file, saved):
        assert other["metrics"]["own"]["figures"] == direct["metrics"]["own"]["figures"]
    assert run(*own, "--set", "fit=pad", "--out", "pad.safetensors").code == 0
    run("evaluate", "digits", "-n", "20", "--reference", "pad.safetensors").fails("fit=crop")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    (tmp_path / "broken.safetensors").write_text("no")
    for number, size in enumerate(((8, 8), (9, 9))):
        (tmp_path / "mixed").mkdir(exist_ok=True)
        Image.new("L", size).save(tmp_path / "mixed" / f"{number}.png")
    return tmp_path


BAD: list[tuple[list[str], str]] = [
    ([], "name a model"),
    (["digits", "--images", "x"], "one of the two"),
    (["digits", "--features", "owl"], "did you mean 'own'"),
    (["digits", "--metrics", "kid", "-n", "50"], "1000"),
    (["digits", "--metrics", "cmmd"], "unit norm"),
    (["digits", "--quantise", "ceil"], "round or floor"),
    (["digits", "--held-out", "train"], "cannot be held out"),
    (["digits", "--reference", "BAD/missing.npz"], "missing.npz"),
    (["digits", "--reference", "BAD/broken.safetensors"], "broken"),
    (["digits", "--reference", "BAD/other.npz"], "inception"),
    (["--images", "BAD/mixed", "--data", "digits", *HELD], "9 x 9"),
    (["--images", "BAD/mixed", "--report", "BAD/r"], "need a model"),
    (["digits", "--curve", "noise=shared", "--steps", "1", "--report", "BAD/r"], "one step"),
    (["digits", "--report", "BAD/other.npz"], "is a file"),
    (["stats", "digits", "--features", "own", "--out", "BAD/x.png"], ".safetensors"),
    (["stats", "BAD/mixed", "--features", "own"], "--image-size"),
    (["stats", "digits", "--features", "nosuch:factory", "--out", "BAD/x.safetensors"], "nosuch"),
]


def test_bad_input_is_one_line_and_leaves_nothing(run: Run, bad: Path) -> None:
    before = sorted(bad.rglob("*"))
    for arguments, said in BAD:
        command = [] if arguments[:1] == ["stats"] else ["evaluate"]
        run(*command, *(argument.replace("BAD", str(bad)) for argument in arguments)).fails(said)
        assert sorted(path for path in bad.rglob("*") if path.suffix in (".html", ".json")) == []
        if "--report" not in arguments:
            assert sorted(set(bad.rglob("*")) - {bad / "r"}) == before, arguments


def test_a_run_with_a_flow_says_how_it_was_refined(run: Run) -> None:
    assert run("train", "flow-debug", "--set", "train.steps=1", "--out", "run", "--device", "cpu", "-q").code == 0
    words = ["--data", "digits", *HELD, "--count", 40, "--metrics", "frechet"]
    assert "refined in 2 steps by heun" in run("evaluate", "run", *words, "--json", "-q").json["line"]
