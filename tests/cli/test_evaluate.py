"""`spheregen evaluate` and `spheregen stats --features`, as users call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import spheregen as sg
from spheregen.evaluation.reference import load_reference
from tests.cli.conftest import Run
from tests.evaluation.stubs import POOLED

SQUARE, OWN = sg.data.ImageOptions(image_size=8), {"features": POOLED}
HELD = ("--split", "test")
"""Few real images, so that little is computed."""


def test_figures_come_with_their_recipe(run: Run) -> None:
    shown = run("evaluate", "digits", *HELD, "-n", 30, "--seed", 3, "--steps", 1, "--metrics", "frechet")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("FD-own ")
    assert "30 samples of digits" in shown.out and "seeds 3 to 32" in shown.out and " 1 step," in shown.out


def test_reference_files_and_saved_samples_give_the_same_figures(run: Run, tmp_path: Path) -> None:
    """As the data and the model themselves do."""
    own = ("stats", "digits", *HELD, "--features", POOLED, "--set", "channels=1")
    record = run(*own, "--out", "own.safetensors", "--json").json
    assert record["count"] == record["kept"] == 397 and record["image_size"] == 8
    assert load_reference(tmp_path / "own.safetensors").gaussian.count == 397
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"], "no work is left behind"
    score = ("-n", 60, "--features", POOLED, "--metrics", "frechet", "--json")
    direct = run("evaluate", "digits", *HELD, *score).json
    assert direct["protocol"]["count"] == 60 and direct["data"]["source"] == "digits"
    by_file = run("evaluate", "digits", "--reference", "own.safetensors", *score).json
    assert by_file["metrics"][POOLED]["reference"]["file"] == "own.safetensors"
    assert run("sample", "digits", "-n", 60, "--out", "samples").code == 0
    saved = run("evaluate", "--images", "samples", "--data", "digits", *HELD, *score).json
    for other in (by_file, saved):
        assert other["metrics"][POOLED]["figures"] == direct["metrics"][POOLED]["figures"]
    assert run(*own, "--set", "fit=pad", "--out", "pad.safetensors").code == 0
    run("evaluate", "digits", "-n", "20", "--features", POOLED, "--reference", "pad.safetensors").fails("fit=crop")


def paint(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def scores(run: Run, *words: object) -> tuple[float, dict[str, Any]]:
    """The distance and the result of an evaluation by features that take no time."""
    result = run("evaluate", *words, "--features", POOLED, "--metrics", "frechet", "--json").json
    return result["metrics"][POOLED]["figures"]["frechet"], result


def test_one_file_decides_nothing_and_what_was_changed_is_said(run: Run, tmp_path: Path) -> None:
    real, made = paint(tmp_path / "real", 20, 0), paint(tmp_path / "made", 20, 1)
    before, result = scores(run, "--images", made, "--data", real)
    assert result["notes"] == [] and "as they are, 8 px, colour" in result["line"]
    Image.open(made / "0.png").convert("L").save(made / "0.png")
    Image.open(made / "7.png").resize((11, 9)).save(made / "7.png")
    after, result = scores(run, "--images", made, "--data", real)
    assert after == pytest.approx(before, rel=0.3)
    assert result["protocol"]["image_size"] == 8 and result["protocol"]["channels"] == 3
    assert result["protocol"]["changed"] == {"brought to 8 px": 1, "grey taken as colour": 1}
    assert [name in " ".join(result["notes"]) for name in ("made/7.png", "made/0.png")] == [True, True]
    assert "1 brought to 8 px, 1 grey taken as colour" in result["line"]
    reverse, result = scores(run, "--images", real, "--data", made)  # of the reference too
    assert reverse == pytest.approx(after) and len(result["notes"]) == 2
    assert scores(run, "--images", made, "--data", real, "--image-size", 4)[1]["protocol"]["image_size"] == 4
    for path in real.iterdir():
        Image.open(path).convert("L").save(path)
    assert scores(run, "--images", real, "--data", made)[1]["protocol"]["channels"] == 3


def test_splits_are_of_samples_too_and_a_set_against_itself_is_told(run: Run, tmp_path: Path) -> None:
    both = tmp_path / "both"
    paint(both / "train" / "a", 12, 0)
    paint(both / "test" / "a", 9, 1)
    copies = paint(tmp_path / "copies", 12, 0)
    _, result = scores(run, "--images", both, "--split", "test", "--data", copies)
    assert result["protocol"]["count"] == 9 and "split test" in result["line"] and "copies/all" in result["line"]
    assert result["protocol"]["also_in_reference"] == 0
    distance, result = scores(run, "--images", copies, "--data", both)  # other files of the same contents
    assert distance == pytest.approx(0, abs=1e-6) and result["protocol"]["also_in_reference"] == 12
    assert "12 of the 12 images are also in the reference" in result["notes"][-1]
    run("evaluate", "--images", copies, "--data", both, "--split", "tset").fails("tset")


def test_figures_do_not_outlive_their_images(run: Run, tmp_path: Path) -> None:
    words = ("digits", "--count", 20, "--study", "none", "--data", "photos", "--report", "report")
    paint(tmp_path / "photos", 12, 0)
    fingerprint = sg.data.open_source(tmp_path / "photos").fingerprint
    before, _ = scores(run, *words)
    assert scores(run, *words)[0] == before
    paint(tmp_path / "photos", 12, 1)
    changed = sg.data.open_source(tmp_path / "photos").fingerprint != fingerprint
    assert (scores(run, *words)[0] != before) == changed, "a report follows the fingerprint"


def test_metrics_in_one_call(run: Run, tmp_path: Path) -> None:
    a, b = paint(tmp_path / "a", 20, 0), paint(tmp_path / "b", 20, 1)
    from_line, _ = scores(run, "--images", a, "--data", b)
    assert sg.metrics.fid(a, str(b), features=POOLED) == from_line
    images = [Image.open(path) for path in sorted(a.iterdir())]  # in the order of a folder
    assert sg.metrics.fid(images, sg.data.open_source(b), features=POOLED) == from_line
    assert sg.metrics.kid(a, b, features=POOLED) == pytest.approx(sg.metrics.kid(b, a, features=POOLED))
    with pytest.warns(UserWarning, match="20 of the 20 images are also in the reference"):
        same = sg.metrics.precision_recall(a, torch.stack([sg.data.load_image(each, SQUARE) for each in images]), **OWN)
    assert (same.precision, same.recall) == (1, 1)
    with pytest.raises(sg.SphereGenError, match="logits"):
        sg.metrics.inception_score(a, features=POOLED)


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
    (["digits", "--image-size", "8"], "leave --image-size out"),
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
    words = ["--data", "digits", *HELD, "--count", 40, "--features", POOLED, "--metrics", "frechet"]
    assert "refined in 2 steps by heun" in run("evaluate", "run", *words, "--json", "-q").json["line"]


@pytest.mark.parametrize("words", [["--steps", "4"], ["--metrics", "kid"], ["--report", "x"], ["--curve", "steps=1"]])
def test_restoration_ignores_nothing(run: Run, words: list[str]) -> None:
    run("evaluate", "digits", "--data", "digits", "--protocol", "sp3", *words).fails("does without", "leave")
    run("evaluate", "digits", "--protocol", "sp3").fails("--data")


def test_restoration_is_measured_by_a_protocol(run: Run) -> None:
    words = ("evaluate", "digits", "--data", "digits", "--protocol", "sp3", "-n", "4")
    found = run(*words, "--restoration", "denoise", "--json").json
    assert found["protocol"]["name"] == "sp3" and found["protocol"]["noise"] == {"denoise": 0.2}
    run(*words, "--restoration", "dejpeg").fails("dejpeg", "box")
    run(*words[:5], "sp4").fails("sp4", "sp3")
