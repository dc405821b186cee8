"""Suggested recipes: valid for all kinds of pictures, fitted to time and memory, and every setting with its reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from spheregen.cli.suggest import recipe_text
from spheregen.data import SourceStatistics, open_source, source_statistics
from spheregen.data.look import Look, look_at
from spheregen.data.statistics import Spread
from spheregen.errors import ConfigError, DataError
from spheregen.training import fitting, ladder
from spheregen.training import suggestion as module
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.suggestion import Suggestion, noise_angle, suggest_recipe
from tests.data.test_data_look import glyph, logo, on_grey, photo
from tests.training.test_ladder import FakeClock

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLENTY = 1 << 50  # bytes: no estimate is needed to see that everything fits


@pytest.fixture(autouse=True)
def _plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, PLENTY)


def memory(monkeypatch: pytest.MonkeyPatch, size: int | None, host: int = PLENTY) -> None:
    monkeypatch.setattr(ladder, "available_memory", lambda device: size)
    monkeypatch.setattr(module, "available_memory", lambda device: host)


def many(make: Callable[[int], Image.Image], *folders: tuple[str, int]) -> dict[str, Image.Image]:
    return {
        f"{folder or '.'}/{i:03d}.png": make(i + 100 * place)
        for place, (folder, count) in enumerate(folders)
        for i in range(count)
    }


KINDS: dict[str, Callable[[], dict[str, Image.Image]]] = {
    "photos": lambda: many(photo, ("cats", 20), ("dogs", 22)),
    "grey photos": lambda: {name: image.convert("L") for name, image in many(photo, ("a", 9), ("b", 9)).items()},
    "glyphs": lambda: many(glyph, ("one", 12), ("two", 12)),
    "transparent": lambda: many(logo, ("dark", 20)),
    "light on transparent": lambda: many(lambda i: logo(i, 240), ("light", 20)),
    "panoramas": lambda: many(lambda i: photo(i, (160, 40)), ("", 10)),
    "panoramas on grey": lambda: many(on_grey, ("", 10)),
    "3:2": lambda: many(lambda i: photo(i, (60, 40)), ("", 10)),
    "one class": lambda: many(photo, ("cats", 10)),
    "unbalanced": lambda: many(photo, ("cats", 60), ("dogs", 2)),
    "a picture a class": lambda: {f"{i}/a.png": photo(i) for i in range(6)},
    "three": lambda: many(photo, ("", 3)),
    "six pixels": lambda: many(lambda i: photo(i, (6, 6)), ("", 20)),
    "large": lambda: many(lambda i: photo(i, (230, 250)), ("", 4)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, SourceStatistics, Look]]:
    """What the user names, its statistics and a look at it, by kind."""
    known: dict[str, tuple[str, SourceStatistics, Look]] = {}

    def get(kind: str) -> tuple[str, SourceStatistics, Look]:
        if kind not in known:
            name = kind
            if kind in KINDS:
                folder = tmp_path_factory.mktemp("kinds") / kind.replace(":", " by ")
                for path, image in KINDS[kind]().items():
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    image.save(folder / path)
                name = str(folder)
            source = open_source(name)
            known[kind] = name, source_statistics(source, limit=100), look_at(source, 40)
        return known[kind]

    return get


Sources = Callable[[str], tuple[str, SourceStatistics, Look]]


def suggest(found: tuple[str, SourceStatistics, Look], device: torch.device = CPU, **options: Any) -> Suggestion:
    name, statistics, look = found
    options.setdefault("clock", FakeClock())
    precision = "bf16" if device.type == "cuda" else "float32"
    return suggest_recipe(statistics, look, name, device=device, precision=precision, **options)


def imagined(found: tuple[str, SourceStatistics, Look], side: int, count: int, classes: int = 0) -> Any:
    """As if there were so many square pictures of that size."""
    name, statistics, look = found
    spread = Spread(smallest=side, median=side, largest=side)
    one = Spread(smallest=1, median=1, largest=1)
    changed = dataclasses.replace(
        statistics,
        count=count,
        examined=min(count, 2000),
        image_size=side,
        width=spread,
        height=spread,
        aspect=one,
        class_names=tuple(f"c{i}" for i in range(classes)),
        class_counts=(count // classes,) * classes if classes else (),
        balance=1.0 if classes else None,
    )
    return name, changed, dataclasses.replace(look, torn=0.0, lost=0.0)


def settings(suggestion: Suggestion) -> dict[str, Any]:
    return {key: value for reason in suggestion.reasons for key, value in reason.settings.items()}


# properties of all


@pytest.mark.parametrize(("kind", "device"), [*((kind, CPU) for kind in KINDS), ("photos", GPU), ("digits", GPU)])
def test_it_is_a_recipe_and_each_setting_has_one_reason(
    kind: str, device: torch.device, sources: Sources, tmp_path: Path
) -> None:
    found = sources(kind)
    suggestion = suggest(found, device, clock=FakeClock(2e10 if device == CPU else 2e14))
    path = tmp_path / "suggested.yaml"
    path.write_text(recipe_text(suggestion), encoding="utf-8")
    assert load_recipe(path) == suggestion.recipe
    written = yaml.safe_load(path.read_text("utf-8"))
    keys = [
        f"{section}.{key}" if isinstance(values, dict) else section
        for section, values in written.items()
        for key in (values if isinstance(values, dict) else [""])
    ]
    given = [key for reason in suggestion.reasons for key in reason.settings]
    assert sorted(given) == sorted(key for key in keys if key != "description")
    assert len(given) == len(set(given))
    for reason in suggestion.reasons:
        assert reason.why.endswith(".") and "\n" not in reason.why
        assert len({key.partition(".")[0] for key in reason.settings}) == 1
    assert suggestion.recipe.data.source == found[0]
    assert suggestion.hours <= ladder.DEFAULT_HOURS[device.type] * 1.0001
    assert (
        suggestion.epochs == suggestion.recipe.train.batch_size * settings(suggestion)["train.steps"] / found[1].count
    )


def test_the_angle_is_that_of_the_latent(sources: Sources) -> None:
    for kind in ("digits", "photos", "glyphs"):
        model = suggest(sources(kind)).recipe.model
        assert model.max_angle == noise_angle(model.tokens * model.channels)


def test_the_noise_angle_grows_with_the_latent() -> None:
    assert [noise_angle(size) for size in (24, 2048, 8192, 10**6)] == [53, 80, 80, 85]
    angles = [noise_angle(size) for size in range(1, 10_000, 7)]
    assert angles == sorted(angles) and angles[0] == 45


# what the pictures decide

AUTO, NONE = "auto", "none"


@pytest.mark.parametrize(
    ("kind", "flips", "channels", "classes", "perceptual", "fit", "background"),
    [
        ("photos", True, 3, 2, AUTO, "crop", None),
        ("grey photos", False, 1, 2, AUTO, "crop", None),
        ("glyphs", False, 1, 2, NONE, "crop", None),
        ("digits", False, 1, 10, NONE, "crop", None),
        ("transparent", True, 3, 0, AUTO, "crop", [255, 255, 255]),
        ("light on transparent", False, 3, 0, NONE, "crop", [0, 0, 0]),
        ("panoramas on grey", True, 3, 0, AUTO, "pad", [120, 130, 140]),
        ("3:2", True, 3, 0, AUTO, "crop", None),
        ("one class", True, 3, 0, AUTO, "crop", None),
        ("unbalanced", True, 3, 2, AUTO, "crop", None),
        ("a picture a class", True, 3, 0, AUTO, "crop", None),
        ("six pixels", False, 3, 0, NONE, "crop", None),
    ],
)
def test_what_the_pictures_decide(
    kind: str, flips: bool, channels: int, classes: int, perceptual: str, fit: str, background: Any, sources: Sources
) -> None:
    suggestion = suggest(sources(kind))
    recipe = suggestion.recipe
    assert (recipe.data.flips, recipe.model.image_channels, recipe.model.num_classes) == (flips, channels, classes)
    assert (recipe.perceptual, recipe.data.fit, settings(suggestion).get("data.background")) == (
        perceptual, fit, background,
    )  # fmt: skip
    assert recipe.loss.needs_perceptual == (perceptual == "auto")
    assert classes or recipe.sampling.guidance == 1
    why = next(reason.why for reason in suggestion.reasons if "data.flips" in reason.settings)
    assert kind == "digits" or "Set " in why  # how to change it


def test_the_background_of_padding_without_one_border(sources: Sources) -> None:
    data = suggest(sources("panoramas")).recipe.data
    assert data.fit == "pad" and data.background == sources("panoramas")[2].border


def test_tanh_only_where_nothing_is_saturated(sources: Sources) -> None:
    def activation(kind: str, speed: float) -> str:
        return suggest(imagined(sources(kind), 32, 50_000), GPU, clock=FakeClock(speed)).recipe.model.output_activation

    assert activation("photos", 1e16) == "tanh"
    assert activation("photos", 2e10) == "none"  # small models
    assert activation("glyphs", 1e16) == "none"
    assert activation("transparent", 1e16) == "none"  # drawn on white


def test_warnings(sources: Sources) -> None:
    assert any("3 pictures are few" in warning for warning in suggest(sources("three")).warnings)
    assert not suggest(sources("digits")).warnings
    found = imagined(sources("photos"), 32, 10**7)
    assert any("of an epoch" in warning for warning in suggest(found).warnings)
    assert any("expect blurs" in warning for warning in suggest(found, hours=0.001).warnings)
    assert any("enlarged" in warning for warning in suggest(sources("digits"), image_size=64).warnings)


def test_bad_files_are_skipped(tmp_path: Path) -> None:
    photo(0).save(tmp_path / "0.png")
    (tmp_path / "broken.png").write_bytes(b"junk")
    source = open_source(str(tmp_path))
    suggestion = suggest((str(tmp_path), source_statistics(source), look_at(source)))
    assert suggestion.recipe.data.on_error == "skip"
    assert any("broken.png" in warning for warning in suggestion.warnings)


# what the device decides


@pytest.mark.parametrize(
    ("kind", "side", "count", "classes", "shipped"),
    [
        ("digits", 8, 1400, 10, "digits"),
        ("photos", 32, 50_000, 10, "cifar10-laptop"),
        ("photos", 224, 720, 12, "flowers-laptop"),
    ],
)
def test_on_a_laptop_it_is_close_to_the_shipped_recipes(
    kind: str, side: int, count: int, classes: int, shipped: str, sources: Sources
) -> None:
    chosen = suggest(imagined(sources(kind), side, count, classes)).recipe
    pattern = load_recipe(shipped)
    assert dataclasses.replace(chosen.model, max_angle=pattern.model.max_angle) == pattern.model
    assert abs(chosen.model.max_angle - pattern.model.max_angle) <= 5
    assert chosen.loss == pattern.loss
    assert chosen.data.flips == pattern.data.flips
    assert chosen.train.batch_size == pattern.train.batch_size
    assert chosen.optimizer.lr == pattern.optimizer.lr


@pytest.mark.parametrize(
    ("side", "count", "classes", "shipped"),
    [
        (32, 50_000, 10, "cifar10"),
        (256, 8189, 102, "flowers102"),
        (256, 16_130, 0, "animal-faces"),
        (300, 1_281_167, 1000, "imagenet-l"),
    ],
)
def test_with_a_fast_gpu_it_is_the_published_configuration(
    side: int, count: int, classes: int, shipped: str, sources: Sources
) -> None:
    suggestion = suggest(imagined(sources("photos"), side, count, classes), GPU, clock=FakeClock(1e18))
    chosen, pattern = suggestion.recipe, load_recipe(shipped)
    assert chosen.model.patch == pattern.model.patch
    assert dataclasses.replace(chosen.model, patch_size=None, latent_resolution="high") == pattern.model
    assert (chosen.loss, chosen.noise, chosen.sampling) == (pattern.loss, pattern.noise, pattern.sampling)
    assert suggestion.epochs == pytest.approx(pattern.train.epochs or 0, rel=0.1)
    assert chosen.train.ema == pattern.train.ema


@pytest.mark.parametrize(("side", "count"), [(8, 1400), (32, 50_000), (64, 3000), (256, 700), (256, 10**6)])
def test_more_hours_never_give_less(side: int, count: int, sources: Sources) -> None:
    found = imagined(sources("photos"), side, count)
    before = (0, 0, 0.0)
    for exponent in range(-4, 22, 2):
        suggestion = suggest(found, hours=2.0**exponent)
        model = suggestion.recipe.model
        size = sum(part.depth * part.width**2 for part in (model.encoder_size, model.decoder_size))
        now = (model.image_size, size, suggestion.hours)
        assert all(a <= b * 1.0001 for a, b in zip(before, now, strict=True)), (exponent, before, now)
        assert suggestion.hours <= 2.0**exponent or settings(suggestion)["train.steps"] == 1
        before = now
    assert before[0] == side


def test_a_faster_device_never_gives_less(sources: Sources) -> None:
    found = imagined(sources("photos"), 256, 20_000)
    sides = [suggest(found, clock=FakeClock(10.0**speed)).recipe.model.image_size for speed in range(7, 18)]
    assert sides == sorted(sides) and sides[0] < 256 and sides[-1] == 256


def test_smaller_memory_means_smaller_pieces_then_a_smaller_model(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs(recipe: Recipe, *, micro_batch: int, **_: Any) -> Any:
        return SimpleNamespace(total=micro_batch * recipe.model.image_size**2 << (10 if recipe.train.recompute else 12))

    monkeypatch.setattr(fitting, "rough_total", lambda recipe: math.inf)
    monkeypatch.setattr(fitting, "estimate_memory", needs)
    monkeypatch.setattr(ladder, "estimate_memory", needs)
    found = imagined(sources("photos"), 64, 300)
    reached = []
    for exponent in range(32, 19, -1):
        memory(monkeypatch, 1 << exponent)
        suggestion = suggest(found)
        model, train = suggestion.recipe.model, suggestion.recipe.train
        pieces = train.micro_batch or train.batch_size
        assert isinstance(pieces, int)
        cache = 300 * 3 * model.image_size**2
        assert needs(suggestion.recipe, micro_batch=pieces).total <= 0.9 * ((1 << exponent) - cache)
        assert pieces >= 8 or train.recompute
        stopped = " ".join(reason.why for reason in suggestion.reasons)
        assert ("does not fit into" in stopped) == (model.image_size < 64)
        reached.append((model.image_size, not train.recompute, pieces))
    sides = [side for side, *_ in reached]
    assert sides == sorted(sides, reverse=True) and set(sides) == {64, 32, 16}
    whole = [fit for fit in reached if fit[0] == 64]
    assert whole == sorted(whole, reverse=True) and not whole[-1][1]
    memory(monkeypatch, 1 << 18)
    with pytest.raises(ConfigError, match="not even the nano model at 16 px fits") as caught:
        suggest(found)
    assert "\n" not in str(caught.value)
    memory(monkeypatch, None)  # a device that does not tell
    assert "train.micro_batch" not in settings(suggest(found))


def test_a_gpu_of_little_memory_tries_the_pieces(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "largest_micro_batch", lambda recipe, **_: 64 if recipe.train.recompute else 4)
    recipe = suggest(imagined(sources("photos"), 32, 50_000), GPU, clock=FakeClock(1e15)).recipe
    assert recipe.model.decoder == "base"
    assert (recipe.train.micro_batch, recipe.train.recompute) == ("auto", True)


def test_large_sets_are_not_kept_in_memory(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)

    def data(count: int, host: int) -> tuple[int, int]:
        memory(monkeypatch, PLENTY, host)
        chosen = suggest(imagined(sources("photos"), 256, count), GPU, clock=FakeClock(1e18)).recipe.data
        return chosen.cache_mb, chosen.workers

    assert data(1000, PLENTY) == (2048, 0)  # the defaults serve
    assert data(100_000, PLENTY) == (math.ceil(100_000 * 3 * 256**2 / 2**20), 0)  # 18.3 GiB
    assert data(100_000, 8 << 30) == (0, 3)
    assert data(10_000, 2 << 30) == (0, 3)  # 1.8 GiB


# bad input


def test_impossible_wishes(sources: Sources) -> None:
    with pytest.raises(ConfigError, match="hours is 0"):
        suggest(sources("photos"), hours=0)
    with pytest.raises(ConfigError, match="such as 96"):
        suggest(sources("photos"), image_size=97)


def test_pictures_that_cannot_serve(sources: Sources) -> None:
    name, statistics, look = sources("photos")
    with pytest.raises(DataError, match="3 px small"):
        suggest((name, dataclasses.replace(statistics, image_size=3), look))
    assert suggest((name, dataclasses.replace(statistics, image_size=3), look), image_size=8).recipe
    with pytest.raises(DataError, match="can be read"):
        suggest((name, dataclasses.replace(statistics, image_size=None), look))
