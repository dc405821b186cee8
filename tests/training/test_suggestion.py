"""Suggested recipes: valid for all kinds of pictures, fitted to time and memory, and every setting with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spheregen.data import SourceStatistics, open_source, source_statistics
from spheregen.data.statistics import Look, Spread, look_at
from spheregen.errors import ConfigError, DataError
from spheregen.family import ConvolutionalConfig
from spheregen.training import measured
from spheregen.training import suggestion as module
from spheregen.training.recipe import Recipe, load_recipe
from spheregen.training.suggestion import Suggestion, check_wishes, divisible, noise_angle, suggest_recipe
from tests.data.test_data_look import glyph, logo, on_grey, photo

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLENTY = 1 << 50  # bytes: no estimate is needed to see that everything fits


@pytest.fixture(autouse=True)
def _small_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that follows from the sizes alone, of which there is plenty; the real estimates have own tests."""

    def largest(recipe: Recipe, *, available: int, **_: Any) -> int:
        count = recipe.train.batch_size
        while count and count * recipe.model.image_size**2 << (10 if recipe.train.recompute else 12) > available:
            count //= 2
        return count

    monkeypatch.setattr(module, "largest_micro_batch", largest)
    memory(monkeypatch, PLENTY)


def memory(monkeypatch: pytest.MonkeyPatch, size: int | None, host: int | None = None) -> None:
    monkeypatch.setattr(module, "available_memory", lambda device: host if host and device.type == "cpu" else size)


def operations(model: Any) -> int:
    """Of an image in training, about."""
    if isinstance(model, ConvolutionalConfig):
        return 500 * (model.image_size // model.patch) ** 2 * model.width**2
    sizes = (model.encoder_size, model.decoder_size)
    return sum(144 * model.tokens * size.depth * size.width**2 for size in sizes)


class FakeClock:
    """Time that follows from the shapes alone, on a device of so many operations per second."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def guess(self, recipe: Recipe) -> float:
        pixels = 2e5 * recipe.model.image_size**2 if recipe.perceptual != "none" else 0
        return recipe.train.batch_size * (operations(recipe.model) + pixels) / self.speed

    measure = guess


def many(make: Callable[[int], Image.Image], *folders: tuple[str, int]) -> dict[str, Image.Image]:
    return {
        f"{folder or '.'}/{i:03d}.png": make(i + 100 * place)
        for place, (folder, count) in enumerate(folders)
        for i in range(count)
    }


KINDS: dict[str, Callable[[], dict[str, Image.Image]]] = {
    "photos": lambda: many(photo, ("cats", 20), ("dogs", 22)),
    "glyphs": lambda: many(glyph, ("one", 12), ("two", 12)),
    "transparent": lambda: many(logo, ("dark", 20)),
    "light on transparent": lambda: many(lambda i: logo(i, 240), ("light", 20)),
    "panoramas on grey": lambda: many(on_grey, ("", 10)),
    "unbalanced": lambda: many(photo, ("cats", 60), ("dogs", 2)),
    "a picture a class": lambda: {f"{i}/a.png": photo(i) for i in range(6)},
    "three": lambda: many(photo, ("", 3)),
    "six pixels": lambda: many(lambda i: photo(i, (6, 6)), ("", 20)),
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


def suggest(
    found: tuple[str, SourceStatistics, Look], device: torch.device = CPU, speed: float = 2e10, **options: Any
) -> Suggestion:
    name, statistics, look = found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Clock", lambda *_: FakeClock(speed))
        return suggest_recipe(statistics, look, name, device=device, precision="float32", **options)


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


# properties of all


@pytest.mark.parametrize(("kind", "device"), [*((kind, CPU) for kind in KINDS), ("photos", GPU), ("digits", GPU)])
def test_it_is_a_recipe_with_its_reasons_above_the_settings(
    kind: str, device: torch.device, sources: Sources, tmp_path: Path
) -> None:
    found = sources(kind)
    suggestion = suggest(found, device, speed=2e10 if device == CPU else 2e14)
    path = tmp_path / "suggested.yaml"
    path.write_text(suggestion.yaml(), encoding="utf-8")
    assert load_recipe(path) == suggestion.recipe
    lines = suggestion.yaml().splitlines()
    for key, reason in suggestion.reasons.items():
        place = lines.index(next(line for line in lines if line.strip() == f"# {reason}"))
        assert lines[place + 1].strip().startswith(f"{key.rpartition('.')[2]}: ")
        assert reason.endswith(".") and len(reason) < 200
    assert len(suggestion.reasons) >= 12
    model = suggestion.recipe.model
    if suggestion.recipe.kind == "autoencoder":
        assert model.max_angle == noise_angle(model.tokens * model.channels)
    assert suggestion.recipe.data.source == found[0]
    assert suggestion.hours <= module.DEFAULT_HOURS[device.type] * 1.0001
    train = suggestion.recipe.train
    assert suggestion.epochs == train.batch_size * (train.steps or 0) / found[1].count


# what the pictures decide

AUTO, NONE = "auto", "none"


@pytest.mark.parametrize(
    ("kind", "flips", "channels", "classes", "perceptual", "fit", "background"),
    [
        ("photos", True, 3, 2, AUTO, "crop", None),
        ("glyphs", False, 1, 2, NONE, "crop", None),
        ("digits", False, 1, 10, NONE, "crop", None),
        ("transparent", True, 3, 0, AUTO, "crop", [255, 255, 255]),
        ("light on transparent", False, 3, 0, NONE, "crop", [0, 0, 0]),
        ("panoramas on grey", True, 3, 0, AUTO, "pad", [120, 130, 140]),
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
    written = suggestion.settings["data"].get("background")
    assert (recipe.perceptual, recipe.data.fit, written) == (perceptual, fit, background)
    assert recipe.loss.needs_perceptual == (perceptual == "auto")
    assert classes or recipe.sampling.guidance == 1


# what the device decides


@pytest.mark.parametrize(
    ("kind", "side", "count", "classes", "shipped"),
    [
        ("digits", 8, 1400, 10, "digits"),
        ("glyphs", 32, 40_000, 62, "conv-letters"),
        ("photos", 32, 50_000, 10, "conv-cifar10"),
        ("photos", 224, 720, 12, "conv-flowers"),
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
    ("kind", "side", "count", "classes", "like"),
    [
        ("glyphs", 32, 30_000, 40, "letters"),
        ("photos", 64, 500, 3, "flowers"),
        ("photos", 32, 30_000, 10, "10 kinds of things"),
    ],
)
def test_what_to_expect_is_of_images_like_these(
    kind: str, side: int, count: int, classes: int, like: str, sources: Sources
) -> None:
    assert like in suggest(imagined(sources(kind), side, count, classes)).expectation


def test_a_member_whose_images_are_nearer_to_real_ones_is_named() -> None:
    ours = measured.Reached("cifar10", 10.0, measured.OURS, "1 step", 1.0, 100.0, 2.0, 0.1)
    near = ours._replace(member="plain flow", fd_own=50.0)
    assert "images of a plain flow are nearer" in measured.expectation([ours, near])
    assert "nearer" not in measured.expectation([ours, near._replace(fd_own=90.0)])
    assert "nearer" not in measured.expectation([ours, near._replace(right=0.1)]), "of no class"
    assert not measured.expectation([near]), "what suggest does not propose"


def test_what_was_measured_is_of_known_data_and_the_best_of_a_time_comes_first() -> None:
    rows = measured.measured()
    assert {row.data for row in rows} <= measured.DATA.keys()
    assert len({(row.data, row.minutes, row.member) for row in rows}) == len(rows), "one row each"
    assert all(0 <= row.recall <= 1 and row.fd_own > 0 and row.right > 0 for row in rows)
    for name, known in measured.DATA.items():
        found = measured.comparable(known.strokes, known.side, known.images, 10)
        assert {row.data for row in found} == {name} or name not in {row.data for row in rows}
        assert len({row.minutes for row in found}) == 1
        assert list(found) == sorted(found, key=lambda row: row.fd_classifier)


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
    suggestion = suggest(imagined(sources("photos"), side, count, classes), GPU, speed=1e18)
    chosen, pattern = suggestion.recipe, load_recipe(shipped)
    assert chosen.model.patch == pattern.model.patch
    assert dataclasses.replace(chosen.model, patch_size=None, latent_resolution="high") == pattern.model
    assert (chosen.loss, chosen.noise, chosen.sampling) == (pattern.loss, pattern.noise, pattern.sampling)
    assert suggestion.epochs == pytest.approx(pattern.train.epochs or 0, rel=0.1)
    assert chosen.train.ema == pattern.train.ema


@pytest.mark.parametrize(("side", "count"), [(8, 1400), (64, 3000), (256, 10**6)])
def test_more_hours_never_give_less(side: int, count: int, sources: Sources) -> None:
    found = imagined(sources("photos"), side, count)
    before = (0, 0, 0.0)
    for exponent in range(-4, 22, 5):
        suggestion = suggest(found, hours=2.0**exponent)
        model = suggestion.recipe.model
        now = (model.image_size, operations(model), suggestion.hours)
        assert all(a <= b * 1.0001 for a, b in zip(before, now, strict=True)), (exponent, before, now)
        assert suggestion.hours <= 2.0**exponent or suggestion.recipe.train.steps == 1
        before = now
    assert before[0] == side


def test_smaller_memory_means_smaller_pieces_then_a_smaller_model(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = imagined(sources("photos"), 64, 300)
    reached = []
    for exponent in range(32, 19, -1):
        memory(monkeypatch, 1 << exponent)
        suggestion = suggest(found)
        model, train = suggestion.recipe.model, suggestion.recipe.train
        pieces = train.micro_batch or train.batch_size
        assert isinstance(pieces, int)
        assert pieces >= 8 or train.recompute
        assert ("does not fit into" in " ".join(suggestion.reasons.values())) == (model.image_size < 64)
        reached.append((model.image_size, not train.recompute, pieces))
    sides = [side for side, *_ in reached]
    assert sides == sorted(sides, reverse=True) and {64, 32} <= set(sides)
    memory(monkeypatch, 1 << 17)
    with pytest.raises(ConfigError, match="not even the nano model at 16 px"):
        suggest(found)
    memory(monkeypatch, None)  # a device that does not tell
    assert "micro_batch" not in suggest(found).settings["train"]


# bad input


def test_every_size_has_a_model_or_a_cure(sources: Sources) -> None:
    def refusal(side: int) -> str:
        try:
            check_wishes(None, side)
        except ConfigError as error:
            return str(error)
        return ""

    for side in range(4, 1025):
        if refused := refusal(side):
            cure = int(refused.rpartition("such as ")[2])
            assert cure < side and not refusal(cure)
        assert not refusal(divisible(side))
    for side in (4, 10, 24, 28, 48, 96, 200, 1000):
        assert suggest(sources("photos"), image_size=side).recipe.model.image_size == side


def test_images_that_cannot_serve(sources: Sources) -> None:
    name, statistics, look = sources("photos")
    with pytest.raises(DataError, match="3 px small"):
        suggest((name, dataclasses.replace(statistics, image_size=3), look))
    assert suggest((name, dataclasses.replace(statistics, image_size=3), look), image_size=8).recipe
    with pytest.raises(DataError, match="can be read"):
        suggest((name, dataclasses.replace(statistics, image_size=None), look))
