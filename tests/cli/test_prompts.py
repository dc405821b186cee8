"""Commands under prompts, and captions in those that look at data."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.data.test_captions import captioned
from tests.training.runs import run as train
from tests.training.test_texts import SHORT, TEXT


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that follows texts."""
    return train(tmp_path_factory.mktemp("texts") / "run", *TEXT, *SHORT, recipe="conv-debug")


def test_sample_follows_prompts_in_turn(run: Run, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("digit 1\n\n  digit 2 \n")
    made = run("sample", texts, "-n", 3, "--prompt", "digit 0", "--prompts", "some.txt", "--out", "out", "--json").json
    assert made["count"] == 3
    for number, text in enumerate(("digit 0", "digit 1", "digit 2")):
        with Image.open(tmp_path / "out" / f"{number:06d}.png") as image:
            assert image.info["prompt"] == text
    assert run("sample", "--like", "out/000001.png", "--out", "again").code == 0
    assert (tmp_path / "again" / "000001.png").read_bytes() == (tmp_path / "out" / "000001.png").read_bytes()
    negative = ("--set", "negative_prompt=digit 1", "--guidance", 2)
    assert run("sample", texts, "-n", 1, "--prompt", "digit 3", *negative, "--out", "n.png").code == 0


def test_edits_and_interpolations_follow_prompts(run: Run, texts: Path, tmp_path: Path) -> None:
    assert run("sample", texts, "-n", 2, "--out", "made").code == 0
    assert run("edit", texts, "made", "--prompt", "digit 3", "--out", "edited").code == 0
    assert len(list((tmp_path / "edited").glob("*.png"))) == 2
    assert run("vary", texts, "made/000000.png", "-n", 2, "--prompt", "digit 3", "--out", "v.png").code == 0
    two = ("--prompt", "digit 1", "--prompt", "digit 2")
    found = run("interpolate", texts, 1, 1, *two, "--frames", 4, "--out", "way.png", "--json").json
    assert found["class_path"] == "slerp" and found["labels"] == ["digit 1", "digit 2"]


def test_prompts_that_cannot_be_are_refused(run: Run, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe5\xff")
    for words, named in (
        (["sample", texts, "--labels", "3"], "--prompt"),
        (["sample", "digits", "--prompt", "a"], "--labels"),
        (["sample", texts, "--prompts", "none.txt"], "none.txt"),
        (["sample", texts, "--prompts", "empty.txt"], "holds no prompt"),
        (["sample", texts, "--prompts", "latin.txt"], "UTF-8"),
        (["sample", texts, "--prompt", "x" * 20_000], "20000 characters"),
        (["vary", texts, "empty.txt", "--prompt", "a", "--prompt", "b"], "empty.txt"),
    ):
        run(*words).fails(named)


def test_stats_and_suggest_know_captions(run: Run, tmp_path: Path) -> None:
    captioned(tmp_path / "some")
    found = run("stats", "some", "--json").json["captions"]
    assert (found["captions"], found["without"], found["longest"]) == (10, 1, 16)
    shown = run("stats", "some").out
    assert "Latin 10" in shown and "ignored: 1" not in shown
    (tmp_path / "some" / "005.txt").write_bytes(b"\xff")
    assert "UTF-8" in run("stats", "some").out
    assert run("stats", "some", "--set", "captions=french").code == 2
    (tmp_path / "some" / "005.txt").unlink()
    recipe = run("suggest", "some", "--json").json["recipe"]
    assert recipe["model"]["text_width"] > 0 == recipe["model"]["num_classes"]


def test_a_prior_is_fitted_under_captions(run: Run, texts: Path) -> None:
    before = (texts / "prior.safetensors").read_bytes()
    assert run("fit-prior", texts, "--data", "digits", "--split", "test").code == 0
    assert (texts / "prior.safetensors").read_bytes() != before
    assert run("sample", texts, "-n", 1, "--prompt", "digit 3", "--set", "prior=fitted", "--out", "f.png").code == 0


def test_encode_keeps_captions_where_it_is_asked_to(run: Run, tmp_path: Path) -> None:
    assert run("encode", "digits", "digits", "--out", "plain").code == 0
    assert run("encode", "digits", "digits", "--out", "told", "--set", "captions=auto").code == 0
    assert not (tmp_path / "plain" / "captions.safetensors").exists()
    settings = [each for text in (*TEXT[:2], *SHORT) for each in ("--set", text)]
    assert run("train", "sle-debug", "--data", "told", *settings, "--out", "run").code == 0
    run("train", "sle-debug", "--data", "plain", *settings, "--out", "other").fails("captions=auto")


def test_evaluate_tells_how_texts_are_followed(run: Run, texts: Path) -> None:
    found = run("evaluate", texts, "--data", "digits", "--split", "test", "-n", 20, "--features", "own", "--json").json
    assert {"retrieval", "real_retrieval"} <= found["texts"].keys() and "retrieval" in found["line"]
