"""`spheregen suggest` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from spheregen.training import ladder, suggestion
from spheregen.training.recipe import Recipe, load_recipe
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _same_machine_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeClock:
        def __init__(self, *_: object) -> None: ...

        def guess(self, recipe: Recipe) -> float:
            return 1e-8 * recipe.model.image_size**2 * recipe.train.batch_size * recipe.model.decoder_size.width**2

        measure = guess

    monkeypatch.setattr(suggestion, "Clock", FakeClock)
    monkeypatch.setattr(ladder, "available_memory", lambda device: 1 << 50)


@pytest.fixture
def photos(run: Run) -> str:
    """A folder of three pictures in the current one."""
    Path("photos").mkdir()
    for number in range(3):
        Image.radial_gradient("L").resize((32, 32)).convert("RGB").rotate(number).save(f"photos/{number}.png")
    return "photos"


def test_the_output_is_a_recipe_with_its_reasons(run: Run) -> None:
    result = run("suggest", "digits", "--device", "cpu", "--limit", 50)
    assert result.code == 0, result.err
    Path("mine.yaml").write_text(result.out, encoding="utf-8")
    recipe = load_recipe("mine.yaml")
    assert (recipe.name, recipe.data.source, recipe.model.num_classes) == ("mine", "digits", 10)
    lines = result.out.splitlines()
    assert all(len(line) <= 120 for line in lines)
    above = lines[next(i for i, line in enumerate(lines) if line.strip().startswith("flips:")) - 1]
    assert above.strip().startswith("# A mirrored picture")
    assert [line for line in lines if not line.startswith((" ", "#"))][1:] == [
        "data:", "model:", "loss:", "perceptual: none", "optimizer:", "train:", "sampling:",
    ]  # fmt: skip
    assert "spheregen train mine.yaml --device cpu" in result.err


def test_what_it_writes_trains(run: Run, photos: str) -> None:
    result = run("suggest", photos, "--out", "deep/mine.yaml", "--device", "cpu", "--hours", 0.1, "-q")
    assert result.code == 0, result.err
    assert result.out == ""
    assert "warning: 3 pictures are few" in result.err
    assert "spheregen train deep/mine.yaml" in result.err
    small = "{width: 16, depth: 1, heads: 2}"
    trained = run(
        "train", "deep/mine.yaml", "--device", "cpu", "--set", "train.steps=2", "--json", "--out", "run",
        "--set", f"model.encoder={small}", "--set", f"model.decoder={small}",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["steps"] == 2


def test_a_file_is_replaced_only_by_force(run: Run, photos: str) -> None:
    Path("mine.yaml").write_text("precious", encoding="utf-8")
    refused = run("suggest", photos, "--out", "mine.yaml")
    assert refused.code == 2 and "--force" in refused.err and refused.err.count("\n") == 1
    assert Path("mine.yaml").read_text("utf-8") == "precious"
    assert run("suggest", photos, "--out", "mine.yaml", "--force", "--image-size", 24).code == 0
    assert load_recipe("mine.yaml").model.image_size == 24


def test_json(run: Run, photos: str) -> None:
    result = run("suggest", photos, "--json", "--limit", 2)
    answer = json.loads(result.out)
    assert set(answer) == {"recipe", "reasons", "warnings", "seconds_per_step", "hours", "epochs"}
    assert answer["recipe"]["data"]["source"] == photos
    given = {key: value for reason in answer["reasons"] for key, value in reason["settings"].items()}
    assert given["train.steps"] == answer["recipe"]["train"]["steps"]
    assert all(reason["why"] for reason in answer["reasons"])
    Path("mine.yaml").write_text(yaml.safe_dump(answer["recipe"]), encoding="utf-8")
    assert load_recipe("mine.yaml").model.image_size == 32


def test_another_split_is_kept(run: Run) -> None:
    assert yaml.safe_load(run("suggest", "digits", "--split", "test", "--limit", 50).out)["data"]["split"] == "test"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "check the path for a typo"),
        (["digits", "--hours", "-1"], "hours is -1"),
        (["digits", "--image-size", "2"], "from 4 to 1024"),
        (["digits", "--limit", "0"], "limit is 0"),
        (["digits", "--out", "recipe.txt"], "ends in .yaml"),
        (["digits", "--split", "nonsense"], "split"),
        (["digits", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    result = run("suggest", *arguments)
    assert result.code == 2
    assert result.out == "" and words in result.err and result.err.count("\n") == 1
