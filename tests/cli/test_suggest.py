"""`spheregen suggest` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from spheregen.training import suggestion
from spheregen.training.estimate import step_cost
from spheregen.training.recipe import Recipe, load_recipe
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def _same_machine_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeClock:
        def __init__(self, *_: object) -> None: ...

        def guess(self, recipe: Recipe) -> float:
            return recipe.train.batch_size * step_cost(recipe).flops_per_image / 1e10

        measure = guess

    monkeypatch.setattr(suggestion, "Clock", FakeClock)
    monkeypatch.setattr(suggestion, "available_memory", lambda device: 1 << 50)


@pytest.fixture
def photos(run: Run) -> str:
    """A folder of three pictures in the current one."""
    Path("photos").mkdir()
    for number in range(3):
        Image.radial_gradient("L").resize((32, 32)).convert("RGB").rotate(number).save(f"photos/{number}.png")
    return "photos"


def test_the_output_is_a_recipe_with_its_reasons(run: Run) -> None:
    result = run("suggest", "digits", "--device", "cpu", "--limit", 50, "--split", "test")
    assert result.code == 0, result.err
    Path("mine.yaml").write_text(result.out, encoding="utf-8")
    recipe = load_recipe("mine.yaml")
    assert (recipe.name, recipe.data.source, recipe.data.split) == ("mine", "digits", "test")
    assert recipe.model.num_classes == 10
    assert all(len(line) <= 120 for line in result.out.splitlines())
    assert "# A mirrored image" in result.out
    assert "spheregen train mine.yaml --device cpu" in result.err


def test_what_it_writes_trains(run: Run, photos: str) -> None:
    result = run("suggest", photos, "--out", "deep/mine.yaml", "--device", "cpu", "--hours", 0.1)
    assert result.code == 0, result.err
    assert result.out == ""
    assert "are few" in result.err
    assert "spheregen train deep/mine.yaml" in result.err
    small = "{width: 16, depth: 1, heads: 2}"
    trained = run(
        "train", "deep/mine.yaml", "--device", "cpu", "--set", "train.steps=2", "--json", "--out", "run",
        "--set", f"model.encoder={small}", "--set", f"model.decoder={small}",
    )  # fmt: skip
    assert trained.json["steps"] == 2


def test_a_file_is_replaced_only_by_overwrite(run: Run, photos: str) -> None:
    Path("mine.yaml").write_text("precious", encoding="utf-8")
    run("suggest", photos, "--out", "mine.yaml").fails("--overwrite")
    assert Path("mine.yaml").read_text("utf-8") == "precious"
    answer = run("suggest", photos, "--out", "mine.yaml", "--overwrite", "--image-size", 24, "--json").json
    assert load_recipe("mine.yaml").model.image_size == 24
    assert set(answer) == {
        *("recipe", "settings", "reasons", "warnings", "seconds_per_step", "hours", "epochs", "expectation")
    }
    assert answer["settings"]["train"]["steps"] == answer["recipe"]["train"]["steps"]
    assert "train.steps" in answer["reasons"] and all(answer["reasons"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "check the path for a typo"),
        (["digits", "--hours", "-1"], "hours is -1"),
        (["digits", "--image-size", "2"], "from 4 to 1024"),
        (["digits", "--limit", "0"], "limit is 0"),
        (["digits", "--out", "recipe.txt"], "ends in .yaml"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    run("suggest", *arguments).fails(words)
