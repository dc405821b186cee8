"""Suggested recipes: valid for all kinds of pictures, fitted to time and memory, and every setting with its reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from spheregen.cli.suggest import recipe_text
from spheregen.data import SourceStatistics, open_source, source_statistics
from spheregen.data.statistics import Spread
from spheregen.errors import ConfigError, DataError
from spheregen.training import suggestion as module
from spheregen.training.memory import estimate_memory
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.suggestion import Clock, DeviceClock, Look, Suggestion, look_at, noise_angle, suggest_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLENTY = 1 << 50  # bytes: no estimate is needed to see that everything fits


class FakeClock:
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


@pytest.fixture(autouse=True)
def _plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, PLENTY)


def memory(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(module, "available_memory", lambda device: size)


# pictures


def photo(number: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """A smooth field of colours."""
    pixels = np.random.default_rng(number).integers(30, 225, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def glyph(number: int) -> Image.Image:
    """White strokes on black, 28 px."""
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[4 + number % 8 : 10 + number % 8, 5:22] = 255
    return Image.fromarray(pixels)


def logo(number: int, tone: int = 60) -> Image.Image:
    """A square of one colour on transparency, 48 px."""
    pixels = np.zeros((48, 48, 4), dtype=np.uint8)
    pixels[12:36, 10 + number % 8 : 30] = (tone, tone, tone + number % 5, 255)
    return Image.fromarray(pixels)


def on_grey(number: int) -> Image.Image:
    """A wide picture whose edges are grey."""
    picture = Image.new("RGB", (150, 40), (120, 130, 140))
    picture.paste(photo(number, (130, 20)), (10, 10))
    return picture


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
    "unlabelled": lambda: many(photo, ("", 20)),
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
    clock: Clock = options.pop("clock", FakeClock())
    precision = "bf16" if device.type == "cuda" else "float32"
    return suggest_recipe(statistics, look, name, device=device, precision=precision, clock=clock, **options)


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
    return name, changed, dataclasses.replace(look, torn=0.0, lost=0.0, bars=0.0)


def settings(suggestion: Suggestion) -> dict[str, Any]:
    return {key: value for reason in suggestion.reasons for key, value in reason.settings.items()}


# properties of all


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "digits"])
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
    assert given.count("perceptual") == 1
    assert {"source", "flips"} <= {key.removeprefix("data.") for key in given}
    assert {"image_size", "image_channels", "num_classes", "max_angle", "output_activation"} <= set(written["model"])
    assert {"steps", "batch_size", "ema", "checkpoint_every"} <= set(written["train"])
    assert suggestion.recipe.data.source == found[0]
    assert suggestion.hours <= module.DEFAULT_HOURS[device.type] * 1.0001
    assert (
        suggestion.epochs == suggestion.recipe.train.batch_size * settings(suggestion)["train.steps"] / found[1].count
    )


def test_the_angle_is_that_of_the_latent(sources: Sources) -> None:
    for kind in ("digits", "photos", "glyphs"):
        model = suggest(sources(kind)).recipe.model
        assert model.max_angle == noise_angle(model.tokens * model.channels)


def test_the_noise_angle_grows_with_the_latent() -> None:
    assert [noise_angle(size) for size in (24, 2048, 8192, 10**6)] == [53, 80, 85, 85]
    angles = [noise_angle(size) for size in range(1, 10_000, 7)]
    assert angles == sorted(angles) and angles[0] == 45


@pytest.mark.parametrize("side", [*range(4, 140), 224, 250, 256, 512, 1000, 1024])
def test_every_size_has_a_model_or_a_cure(side: int, sources: Sources) -> None:
    problem = ""
    try:
        model = suggest(sources("photos"), image_size=side).recipe.model
    except ConfigError as error:
        problem = str(error)
        side = int(problem.rpartition("such as ")[2])
        model = suggest(sources("photos"), image_size=side).recipe.model
    assert "\n" not in problem
    assert model.image_size == side and 2 <= model.grid <= 64
    found = suggest(imagined(sources("photos"), side, 100)).recipe.model  # as the size of the pictures it always works
    assert found.image_size <= min(side, 256)


# what the pictures decide


def test_flips(sources: Sources) -> None:
    flips = {kind: suggest(sources(kind)).recipe.data.flips for kind in (*KINDS, "digits")}
    assert flips["photos"] and flips["unlabelled"] and flips["panoramas"]
    assert not any(flips[kind] for kind in ("digits", "glyphs", "grey photos", "six pixels"))
    for kind in flips:
        why = next(reason.why for reason in suggest(sources(kind)).reasons if "data.flips" in reason.settings)
        assert kind == "digits" or "Set " in why  # how to change it


def test_perceptual_loss_is_for_photos(sources: Sources) -> None:
    for kind, wanted in (("photos", "auto"), ("glyphs", "none"), ("digits", "none"), ("six pixels", "none")):
        recipe = suggest(sources(kind)).recipe
        assert recipe.perceptual == wanted, kind
        assert recipe.loss.needs_perceptual == (wanted == "auto")


def test_shape_and_background(sources: Sources) -> None:
    def data(kind: str) -> tuple[str, tuple[int, int, int] | None]:
        chosen = suggest(sources(kind))
        return chosen.recipe.data.fit, settings(chosen).get("data.background") and chosen.recipe.data.background

    assert data("photos") == ("crop", None)
    assert data("3:2") == ("crop", None)
    assert data("panoramas")[0] == "pad" and data("panoramas")[1] is not None
    assert data("panoramas on grey") == ("pad", (120, 130, 140))
    assert data("transparent") == ("crop", (255, 255, 255))
    assert data("light on transparent") == ("crop", (0, 0, 0))


def test_tanh_only_where_nothing_is_saturated(sources: Sources) -> None:
    def activation(kind: str, speed: float) -> str:
        return suggest(imagined(sources(kind), 32, 50_000), GPU, clock=FakeClock(speed)).recipe.model.output_activation

    assert activation("photos", 1e16) == "tanh"
    assert activation("photos", 2e10) == "none"  # small models
    assert activation("glyphs", 1e16) == "none"
    assert activation("transparent", 1e16) == "none"  # drawn on white
    assert sources("glyphs")[2].saturated > 0.9 and sources("photos")[2].saturated == 0


def test_channels_and_classes(sources: Sources) -> None:
    model = {kind: suggest(sources(kind)).recipe.model for kind in (*KINDS, "digits")}
    assert [model[kind].image_channels for kind in ("photos", "grey photos", "glyphs", "digits")] == [3, 1, 1, 1]
    assert {kind: model[kind].num_classes for kind in model if model[kind].num_classes} == {
        "photos": 2, "grey photos": 2, "glyphs": 2, "unbalanced": 2, "digits": 10,
    }  # fmt: skip
    for kind in ("one class", "unlabelled", "a picture a class"):
        assert suggest(sources(kind)).recipe.sampling.guidance == 1


def test_warnings(sources: Sources) -> None:
    def warned(kind: str, words: str) -> bool:
        return any(words in warning for warning in suggest(sources(kind)).warnings)

    assert warned("three", "3 pictures are few")
    assert warned("unbalanced", "unbalanced (2 to 60 pictures)") and warned("unbalanced", "dogs (2)")
    assert warned("a picture a class", "labels are not used")
    assert not suggest(sources("digits")).warnings
    found = imagined(sources("photos"), 32, 10**7)
    assert any("of an epoch" in warning for warning in suggest(found).warnings)
    assert any("expect blurs" in warning for warning in suggest(found, hours=0.001).warnings)
    assert any("enlarged" in warning for warning in suggest(sources("digits"), image_size=64).warnings)


def test_bad_files_and_copies(tmp_path: Path) -> None:
    for number in range(8):
        photo(number // 2).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"junk")
    source = open_source(str(tmp_path))
    suggestion = suggest((str(tmp_path), source_statistics(source), look_at(source)))
    assert suggestion.recipe.data.on_error == "skip"
    assert any("broken.png" in warning for warning in suggestion.warnings)
    assert any("4 of 9 files are exact copies" in warning for warning in suggestion.warnings)


def test_a_look_minds_orientation_and_borders(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6  # stored lying, shown standing
    for number in range(3):
        on_grey(number).save(tmp_path / f"{number}.jpg", exif=upright, quality=95)
    look = look_at(open_source(str(tmp_path)))
    assert look.lost == pytest.approx(1 - 40 / 150)
    assert look.torn == 1 and look.clear == 0 and look.one_border == 1
    assert all(abs(a - b) <= 3 for a, b in zip(look.border, (120, 130, 140), strict=True))


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
    assert chosen.model == pattern.model
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
    for exponent in range(-4, 22):
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


def test_small_memory_means_small_pieces(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sources("digits")
    memory(monkeypatch, 90 << 20)
    recipe = suggest(found).recipe
    assert isinstance(recipe.train.micro_batch, int) and recipe.train.micro_batch < recipe.train.batch_size
    assert estimate_memory(recipe, precision="float32", images=found[1].count).total <= 90 << 20
    memory(monkeypatch, None)  # a device that does not tell
    assert "train.micro_batch" not in settings(suggest(found))


def test_smaller_memory_means_a_smaller_model(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(recipe: Recipe, **_: Any) -> Any:
        size = recipe.model.image_size**2 * (1 if recipe.train.recompute else 2)
        return SimpleNamespace(total=size)

    monkeypatch.setattr(module, "estimate_memory", needs)
    monkeypatch.setattr(module, "largest_micro_batch", lambda recipe, **_: 1)
    monkeypatch.setattr(module, "_is_cached", lambda *_: False)
    found = imagined(sources("photos"), 64, 300)
    sides = []
    for available in (10_000, 6000, 4000, 1500, 500):  # bytes, as `needs` has them
        memory(monkeypatch, available)
        suggestion = suggest(found)
        sides.append((suggestion.recipe.model.image_size, suggestion.recipe.train.recompute))
        assert needs(suggestion.recipe).total <= 0.9 * available
        stopped = " ".join(reason.why for reason in suggestion.reasons)
        assert ("does not fit into" in stopped) == (sides[-1][0] < 64)
    assert sides == [(64, False), (64, True), (32, False), (32, True), (16, True)]
    memory(monkeypatch, 100)
    with pytest.raises(ConfigError, match="not even the nano model at 16 px fits") as caught:
        suggest(found)
    assert "\n" not in str(caught.value)


def test_large_sets_are_not_kept_in_memory(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    found = imagined(sources("photos"), 256, 100_000)
    fast: dict[str, Any] = {"clock": FakeClock(1e18), "device": GPU}
    kept = suggest(found, **fast)  # 18.3 GiB of a PiB
    assert kept.recipe.data.cache_mb == math.ceil(100_000 * 3 * 256**2 / 2**20)
    monkeypatch.setattr(module, "available_memory", lambda device: PLENTY if device.type == "cuda" else 8 << 30)
    again = suggest(found, **fast)
    assert again.recipe.data.workers == 3
    assert again.recipe.data.cache_mb << 20 < 100_000 * 3 * 256**2
    name, statistics, look = imagined(sources("photos"), 256, 10_000)  # 1.8 GiB
    monkeypatch.setattr(module, "available_memory", lambda device: PLENTY if device.type == "cuda" else 2 << 30)
    statistics = dataclasses.replace(statistics, encoded_bytes=900 << 20)
    recipe = suggest((name, statistics, dataclasses.replace(look, in_blocks=True)), **fast).recipe
    assert (recipe.data.cache_mb, recipe.data.shuffle) == (0, "blocks")


def test_a_gpu_of_little_memory_tries_the_pieces(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "largest_micro_batch", lambda recipe, **_: 64 if recipe.train.recompute else 4)
    recipe = suggest(imagined(sources("photos"), 32, 50_000), GPU, clock=FakeClock(1e15)).recipe
    assert recipe.model.decoder == "base"
    assert (recipe.train.micro_batch, recipe.train.recompute) == ("auto", True)


def test_a_real_clock_tells_seconds() -> None:
    clock = DeviceClock(CPU, "float32", budget=0.2)
    recipe = load_recipe("debug")
    assert 0 < clock.guess(recipe) < 60
    assert 0 < clock.measure(recipe) < 60


# bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hours": 0.0}, "hours is 0"),
        ({"hours": math.inf}, "hours is inf"),
        ({"hours": math.nan}, "hours is nan"),
        ({"image_size": 3}, "from 4 to 1024"),
        ({"image_size": 5000}, "from 4 to 1024"),
        ({"image_size": 97}, "such as 96"),
    ],
)
def test_impossible_wishes(options: dict[str, Any], words: str, sources: Sources) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        suggest(sources("photos"), **options)
    assert "\n" not in str(caught.value)


def test_pictures_that_cannot_serve(tmp_path: Path, sources: Sources) -> None:
    name, statistics, look = sources("photos")
    with pytest.raises(DataError, match="3 px small"):
        suggest((name, dataclasses.replace(statistics, image_size=3), look))
    assert suggest((name, dataclasses.replace(statistics, image_size=3), look), image_size=8).recipe
    with pytest.raises(DataError, match="can be read"):
        suggest((name, dataclasses.replace(statistics, image_size=None), look))
    (tmp_path / "broken.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="none of the 1 images"):
        look_at(open_source(str(tmp_path)))
    with pytest.raises(ConfigError, match="limit is 0"):
        look_at(open_source("digits"), 0)
