"""The ladder of models: it has a rung for all sizes, and a run is as long as data and time make it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from spheregen.errors import ConfigError
from spheregen.training import ladder
from spheregen.training.ladder import (
    LADDER,
    LAPTOP_EPOCHS,
    Clock,
    Means,
    check_wishes,
    divisible,
    duration,
    places_for,
    round_down,
    run_length,
)
from spheregen.training.recipe import Recipe, load_recipe

CPU = torch.device("cpu")


class FakeClock(Clock):
    """Time that follows from the shapes alone, on a device of so many operations per second."""

    def __init__(self, speed: float = 2e10) -> None:
        self.speed = speed

    def guess(self, recipe: Recipe) -> float:
        model = recipe.model
        per_token = sum(12 * size.depth * size.width**2 for size in (model.encoder_size, model.decoder_size))
        pixels = 2e5 * model.image_size**2 if recipe.perceptual != "none" else 0
        return recipe.train.batch_size * (12 * model.tokens * per_token + pixels) / self.speed

    def measure(self, recipe: Recipe) -> float:
        return self.guess(recipe)


def test_every_size_has_a_model_or_a_cure() -> None:
    for side in range(4, 1025):
        refused = refusal(side)
        if refused:
            cure = int(refused.rpartition("such as ")[2])
            assert "\n" not in refused and cure < side and not refusal(cure)
        else:
            places = places_for(side, exactly=True, labelled=True)
            assert places and all(place.side == side and 2 <= place.grid <= 64 for place in places)
        places = places_for(divisible(side), exactly=False, labelled=True)
        sides = [place.side for place in places]
        assert sides == sorted(sides) and sides[-1] == divisible(side)
        assert all(place.grid * place.patch == place.side for place in places)
        assert [place.rung for place in places] == [rung for rung in LADDER if rung in [one.rung for one in places]]


def refusal(side: int) -> str:
    try:
        check_wishes(None, side)
    except ConfigError as error:
        return str(error)
    return ""


def test_without_labels_the_pattern_has_none() -> None:
    def patterns(labelled: bool) -> list[str]:
        return [place.pattern.name for place in places_for(256, exactly=True, labelled=labelled)]

    assert patterns(True) == ["flowers-laptop", "flowers102", "flowers102", "flowers102", "imagenet-l"]
    assert patterns(False) == ["flowers-laptop", "animal-faces", "animal-faces", "animal-faces", "imagenet-l"]


@pytest.mark.parametrize(
    ("hours", "image_size", "words"),
    [
        (0.0, None, "hours is 0"),
        (math.inf, None, "hours is inf"),
        (math.nan, None, "hours is nan"),
        (None, 3, "from 4 to 1024"),
        (None, 5000, "from 4 to 1024"),
        (None, 97, "such as 96"),
    ],
)
def test_impossible_wishes(hours: float | None, image_size: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_wishes(hours, image_size)


def test_settings_of_a_pattern() -> None:
    place = places_for(32, exactly=False, labelled=True)[-1]
    assert place.pattern == load_recipe("cifar10")
    assert place.section("optimizer", "warmup_epochs") == {"optimizer.lr": 1e-4}  # a number, which YAML takes for text
    assert place.written["model.encoder"] == "base"
    assert isinstance(places_for(32, exactly=True, labelled=True)[0].written["model.encoder"], dict)


@pytest.mark.parametrize("images", [3, 720, 50_000, 10**7])
@pytest.mark.parametrize("seconds", [0.01, 5.0, 10**5])
def test_a_run_is_as_long_as_data_and_time_make_it(images: int, seconds: float) -> None:
    laptop = next(place for place in places_for(64, exactly=False, labelled=True) if place.rung.name == "laptop")
    means = Means(device=CPU, precision="float32", hours=2.0, given=False, memory=None)
    batch = 64
    steps, why = run_length(laptop, means, images=images, batch=batch, seconds=seconds)
    assert steps * seconds <= means.hours * 3600 or steps == 1
    assert steps * batch <= max(LAPTOP_EPOCHS[0] * images, laptop.rung.pictures)
    longer, _ = run_length(
        laptop, dataclasses.replace(means, hours=3.0, given=True), images=images, batch=batch, seconds=seconds
    )
    assert longer >= steps
    assert why.endswith(".") and "\n" not in why


def test_numbers_for_people() -> None:
    assert [duration(hours) for hours in (0.001, 0.5, 2.5, 26, 240)] == [
        "3.6 seconds", "30 minutes", "2.5 hours", "26 hours", "10 days",
    ]  # fmt: skip
    assert [round_down(number) for number in (0.2, 7.9, 99, 1234.5, 98_765)] == [1, 7, 99, 1200, 98_000]


def test_a_clock_guesses_by_operations_and_measures_the_speed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([1e12])
    monkeypatch.setattr(ladder, "matmul_peak", lambda device, precision: next(peaks))
    monkeypatch.setattr(ladder, "flops_per_image", lambda recipe: 3e9)
    clock, recipe = Clock(CPU, "float32"), load_recipe("debug")
    assert clock.guess(recipe) == clock.guess(recipe) == 16 * 3e9 / (ladder.EFFICIENCY * 1e12)
