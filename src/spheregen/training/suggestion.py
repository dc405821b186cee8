"""A recipe fitted to a data set and a device: the largest model of a table that data, time and memory carry.

The recipe is a shipped one, with what the images decide (flips, background, classes, output activation ...) put in
place of its own settings, each with its reason in a line. Rules of thumb are named constants.
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from spheregen.data import SourceStatistics
from spheregen.data.statistics import Look, data_warnings, follows_texts, learnt_classes
from spheregen.devices import available_memory
from spheregen.errors import ConfigError, DataError
from spheregen.family.recipe import Recipe
from spheregen.measure.precision import choose_precision
from spheregen.measure.timing import matmul_peak
from spheregen.networks.perceptual import available_provider
from spheregen.training.estimate import (
    EFFICIENCY,
    estimate_time,
    largest_micro_batch,
    objective_on_meta,
    readable,
    recomputing,
    step_cost,
)
from spheregen.training.measured import comparable, expectation
from spheregen.training.recipe import build_recipe, load_recipe

DEFAULT_HOURS: Mapping[str, float] = {"cpu": 3.0, "cuda": 24.0, "mps": 6.0}
"""How long a run may take, by device, where nobody says."""
SIDES = (4, 1024)
"""The image sizes in pixels for which there is a model."""
PUBLISHED_SIDE = 256  # the published models are no larger, so larger ones must be asked for
LAPTOP_EPOCHS = (300, 1000)  # of models without a published length: by default, and the most if hours are given
FEW_IMAGES = 5000  # below it a trained model is a better start than random weights
LEAST_PASS = 8  # images; where fewer fit, blocks are computed twice instead
SATURATED = 0.1  # share of pure black and white pixels from which tanh is not trusted
STROKES = 0.75  # share of nearly black or white pixels from which images are taken for drawings or writing
CONVOLUTIONAL, CONVOLUTIONAL_SIDE = "convolutional", 4  # pixels that its image sizes are multiples of
DEFAULT_CACHE = 2 << 30  # bytes that recipes keep in memory by default

# Latent numbers and the noise angle of shipped recipes; between them the angle follows the logarithm.
ANGLES = ((6, 45.0), (24, 53.0), (2048, 80.0), (8192, 80.0), (65_536, 85.0))


class ModelSize(NamedTuple):
    """A model of the table."""

    name: str
    like: str
    """The shipped recipe that it is taken from."""
    sides: tuple[int, int]
    """The smallest and largest image size in pixels."""
    grid: int
    """Tokens along a side, about; a patch that divides the image decides."""
    shown: int
    """Images that a run must show it, repeats counted, to be worth it."""
    images: int = 0
    """Different ones that the data set must have."""
    size: str | None = None
    """Of encoder and decoder; None: the recipe's."""
    unlabelled: str | None = None
    """The recipe for images without classes, if it is another."""
    strokes: str | None = None
    """The recipe for drawings and writing, if it is another."""

    def suits(self, side: int) -> bool:
        """Return whether images of so many pixels can be cut up for it."""
        if _kind(self.like) == CONVOLUTIONAL:
            return side % CONVOLUTIONAL_SIDE == 0
        return _patch(side, self.grid) is not None


MODEL_SIZES = (
    ModelSize("nano", "digits", (4, 11), 2, 50_000),
    ModelSize("nano", "digits", (12, 23), 4, 50_000),
    ModelSize("laptop", "conv-cifar10", (24, 55), 8, 30_000, strokes="conv-letters"),
    ModelSize("laptop", "conv-flowers", (56, 95), 16, 30_000, strokes="conv-emoji"),
    ModelSize("laptop", "conv-flowers", (96, 128), 32, 100_000, strokes="conv-emoji"),
    ModelSize("laptop", "flowers-laptop", (129, 1024), 16, 200_000),
    ModelSize("small", "cifar10", (24, 55), 8, 2_000_000, 500, "small"),
    ModelSize("small", "flowers102", (56, 1024), 16, 2_000_000, 500, "small", "animal-faces"),
    ModelSize("base", "cifar10", (24, 55), 16, 10_000_000, 5000),
    ModelSize("base", "flowers102", (56, 1024), 32, 3_000_000, 5000, "base", "animal-faces"),
    ModelSize("large", "flowers102", (96, 1024), 32, 5_000_000, 5000, None, "animal-faces"),
    ModelSize("large", "imagenet-l", (192, 1024), 32, 20_000_000, 500_000),
)
"""From the smallest up. Of each data set those count whose image size does not fall below that of the one before."""


TEXT_WIDTH = 2048
"""Of models that follow captions."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A recipe that `train` runs as it is, and its reasons."""

    recipe: Recipe
    settings: Mapping[str, Any]
    """All that the recipe sets, as its YAML file has it."""
    reasons: Mapping[str, str]
    """Of the settings that data and device decide, by dotted key, a line each."""
    warnings: tuple[str, ...]
    """What the user should know before the run, a line each."""
    seconds_per_step: float
    hours: float
    """Of the whole run, without previews and checkpoints."""
    epochs: float
    """Passes over the data."""
    expectation: str
    """What a model like it was measured to do, a line; empty where nobody has measured it."""

    def yaml(self) -> str:
        """Return the recipe as YAML, the reasons as comments above their settings; each setting is on one line."""
        lines = []
        for section, values in self.settings.items():
            nested = isinstance(values, dict)
            lines += [f"{section}:"] if nested and values else []
            for key, value in values.items() if nested else [(section, values)]:
                path, indent = (f"{section}.{key}", "  ") if nested else (key, "")
                lines += [f"{indent}# {self.reasons[path]}"] if path in self.reasons else []
                text = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True)
                lines.append(f"{indent}{key}: {text.strip()[1:-1]}")
        return "\n".join(lines) + "\n"


class Clock:
    """How long a training step takes on a device of this machine.

    Args:
        precision: in which it computes a wide network; a narrow one may be slower in it.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        self._device, self._precision = device, precision

    def guess(self, recipe: Recipe) -> float:
        """Return the seconds of a step by counting operations."""
        return recipe.train.batch_size * step_cost(recipe).flops_per_image / (EFFICIENCY * self._peak)

    def measure(self, recipe: Recipe) -> float:
        """Return the seconds of a step by trying, for about five seconds."""
        precision = self._precision
        if precision != "float32":
            precision = choose_precision(recipe.train.precision, self._device, objective_on_meta(recipe).model).name
        return estimate_time(recipe, None, self._device, precision, budget=5.0).seconds_per_step

    @functools.cached_property
    def _peak(self) -> float:
        return float(matmul_peak(self._device, self._precision))


def suggest_recipe(
    statistics: SourceStatistics,
    look: Look,
    source: str,
    *,
    device: torch.device,
    precision: str,
    hours: float | None = None,
    image_size: int | None = None,
) -> Suggestion:
    """Return the recipe that suits these images and this device, which is measured for about ten seconds.

    Args:
        statistics: from `source_statistics`.
        look: from `look_at`.
        source: what `data.source` shall be, as the user writes it.
        device, precision: of the run, see `measure.precision`.
        hours: how long it may take; None: `DEFAULT_HOURS`, and no more epochs than such data take.
        image_size: side in pixels, 4 to 1024; None: what images and device allow.

    Raises:
        ConfigError: hours or image_size is impossible, or not even the smallest model fits into memory.
        DataError: no image can be read, or they are too small.
    """
    check_wishes(hours, image_size)
    case = _Case(statistics, look, source, device, precision, hours, image_size)
    clock = Clock(device, precision)
    drafts: list[_Draft] = []
    stop = ""
    for model in MODEL_SIZES:
        draft = case.draft(model)
        if draft is None or (drafts and draft.side < drafts[-1].side):
            continue
        recipe = draft.recipe()
        needed = model.shown / recipe.train.batch_size * clock.guess(recipe) / 3600
        if drafts and statistics.count < model.images:
            stop = f"{draft.title} asks for at least {model.images:,} different images"
        elif drafts and needed > case.limit:
            stop = f"{draft.title} takes {duration(needed)} to see {model.shown:,} images, more than there are"
        if stop:
            break
        drafts.append(draft)
    while not case.fits_memory(drafts[-1]):
        stop = f"{drafts.pop().title} does not fit into the {readable(case.memory or 0)} of memory that are available"
        if not drafts:
            raise ConfigError(f"not even {stop}; free some, or use another device")
    draft = drafts[-1]
    sized = "model.width" if draft.pattern.kind == CONVOLUTIONAL else "model.encoder"
    draft.reasons[sized] += f" No larger, for {stop}." if stop else ""
    seconds = clock.measure(draft.recipe())
    steps = case.decide_length(draft, seconds)
    shown = steps * draft.settings["train"]["batch_size"]
    return Suggestion(
        recipe=draft.recipe(),
        settings=draft.settings,
        reasons=draft.reasons,
        warnings=tuple(case.warnings(draft, shown)),
        seconds_per_step=seconds,
        hours=steps * seconds / 3600,
        epochs=shown / statistics.count,
        expectation=case.expectation(draft, 60 * steps * seconds / 3600),
    )


def check_wishes(hours: float | None, image_size: int | None) -> None:
    """Refuse impossible ones, before any work.

    Raises:
        ConfigError: hours is not positive, or there is no model for image_size.
    """
    if hours is not None and not 0 < hours < math.inf:
        raise ConfigError(f"hours is {hours:g}; give the time that training may take, such as 2 or 0.5")
    if image_size is None:
        return
    if not SIDES[0] <= image_size <= SIDES[1]:
        raise ConfigError(f"image_size is {image_size}; give a side from {SIDES[0]} to {SIDES[1]} pixels")
    lowest = next(model for model in MODEL_SIZES if model.sides[0] <= image_size <= model.sides[1])
    if not lowest.suits(image_size):
        raise ConfigError(
            f"no model divides an image of {image_size} px evenly; choose a multiple of 8 from 32 px on, of 4 below, "
            f"such as {divisible(image_size)}"
        )


def divisible(side: int) -> int:
    """Return the side, lowered to a number that patches divide."""
    unit = 8 if side >= 32 else 4 if side >= 8 else 2
    return side // unit * unit


def noise_angle(numbers: int) -> float:
    """Return `model.max_angle` for a latent of so many numbers, in whole degrees from 45 to 85."""
    sizes, angles = zip(*ANGLES, strict=True)
    return float(round(np.interp(math.log(numbers), np.log(sizes), angles)))


def duration(hours: float) -> str:
    """Return hours for people: `40 minutes`, `2.5 hours`, `9 days`."""
    units = ((24.0, "days", 72), (1.0, "hours", 5 / 3), (1 / 60, "minutes", 1 / 36), (1 / 3600, "seconds", 0))
    size, unit = next((size, unit) for size, unit, least in units if hours >= least)
    return f"{hours / size:.{0 if hours / size >= 10 else 1}f} {unit}"


class _Draft:
    """The settings of a recipe in the making, and the reasons of those that are decided here."""

    def __init__(self, model: ModelSize, side: int, pattern: str) -> None:
        self.model, self.side = model, side
        self.title = f"the {model.name} model at {side} px"
        self.pattern: Any = load_recipe(pattern)
        written = self.pattern.model_dump(mode="json", exclude_defaults=True)
        del written["name"]
        order = ("data", "model", "loss", "perceptual", "optimizer", "train", "sampling")
        self.settings: dict[str, Any] = {
            "description": "",
            **({"kind": self.pattern.kind} if self.pattern.kind == CONVOLUTIONAL else {}),
            **{section: {} for section in order},
            **written,
            "data": {},
        }
        self.reasons: dict[str, str] = {}

    def set(self, key: str, value: Any, why: str = "") -> None:
        """Decide a setting by its dotted key; None leaves it to its default."""
        section, _, name = key.rpartition(".")
        place = self.settings[section] if section else self.settings
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value
            self.reasons |= {key: why} if why else {}

    def recipe(self) -> Recipe:
        """Return the recipe; of one step while its length is not decided."""
        settings = {"name": "suggested", **copy.deepcopy(self.settings)}
        settings["train"].setdefault("steps", 1)
        return build_recipe(settings, "the suggestion")


class _Case:
    """The facts that decisions rest on, and the decisions."""

    def __init__(
        self,
        found: SourceStatistics,
        look: Look,
        source: str,
        device: torch.device,
        precision: str,
        hours: float | None,
        asked: int | None,
    ) -> None:
        self.found, self.look, self.source, self.device, self.precision = found, look, source, device, precision
        self.hours, self.asked = hours, asked
        self.limit = hours or DEFAULT_HOURS.get(device.type, DEFAULT_HOURS["cpu"])
        self.memory = available_memory(device)
        self.texts = follows_texts(found)
        self.classes = learnt_classes(found)
        self.native = _native_size(found, asked)
        self.photos = look.flips_allowed and self.native >= 16 and look.two_toned < STROKES

    def draft(self, model: ModelSize) -> _Draft | None:
        """Return all decisions but the length of the run; None where the model has no size for these images."""
        least, most = model.sides
        side = self.asked or divisible(min(self.native, PUBLISHED_SIDE))
        if side > most >= 16 and not self.asked:  # 8 px are for images of 8 px
            side = 1 << (most.bit_length() - 1)
        if not (least <= side <= most and model.suits(side)):
            return None
        like = model.like if self.classes or self.texts else model.unlabelled or model.like
        draft = _Draft(model, side, like if self.photos else model.strokes or like)
        self._decide_data(draft)
        self._decide_model(draft)
        self._decide_training(draft)
        return draft

    def _decide_data(self, draft: _Draft) -> None:
        found, look, side, put = self.found, self.look, draft.side, draft.set
        kinds = f"{self.classes} classes" if self.classes else "by captions" if self.texts else "unconditional"
        machine = "CPU" if self.device.type == "cpu" else "GPU"
        put("description", f"{found.name} at {side} px, {kinds}; suggested for a {machine}.")
        put("data.source", self.source, f"{found.count:,} images, {found.examined:,} of them examined.")
        put("data.split", found.split if found.split != "train" else None)
        put("data.on_error", "skip" if found.bad else None, f"{len(found.bad)} images cannot be read.")
        flips = self.photos and found.channels == 3
        why = "Taken for photos; set false for writing or maps." if flips else "Set true if a mirror image is as good."
        put(
            "data.flips",
            flips,
            why if look.flips_allowed else f"A mirrored image of {found.name} means something else.",
        )
        if look.lost:
            why = f"A square crop loses {look.lost:.0%} of the average image."
            put("data.fit", "pad" if look.padded else "crop", why)
        spreads = [spread for spread in (found.width, found.height) if spread]
        if any({spread.smallest, spread.largest} != {side} for spread in spreads):
            hard = min(spread.median for spread in spreads) < side and not self.photos
            why = "Few pixels keep their hard edges." if hard else "Smooth, and no pixel is dropped."
            put("data.resize", "nearest" if hard else "published" if side > 64 else "adm", why)
        if background := look.background(found.transparent):
            put("data.background", list(background[0]), f"Behind padding and transparency; {background[1]}.")
        decoded = found.count * found.channels * side**2
        why = f"The decoded set takes {readable(decoded)}."
        if decoded > (available_memory(torch.device("cpu")) or 2 * DEFAULT_CACHE) // 2:
            put("data.cache_mb", 0, why)
            if self.device.type != "cpu":
                put("data.workers", max(1, min(8, (os.cpu_count() or 1) - 1)), "They decode it again and again.")
        elif decoded > DEFAULT_CACHE:
            put("data.cache_mb", math.ceil(decoded / 2**20), why)

    def _decide_model(self, draft: _Draft) -> None:
        found, look, pattern, put = self.found, self.look, draft.pattern, draft.set
        larger = f" Larger than {PUBLISHED_SIDE} px must be asked for." if self.native > PUBLISHED_SIDE else ""
        put("model.image_size", draft.side, f"The images suit {self.native} px.{larger}")
        put("model.image_channels", found.channels, f"{found.grey:,} of {found.examined:,} images are grey.")
        counts = found.class_counts
        why = f"{min(counts)} to {max(counts)} images each." if self.classes else "No labels that a model can learn."
        if self.classes and found.captions is not None:
            why += f" To follow the captions instead: num_classes: 0, text_width: {TEXT_WIDTH}."
        put("model.num_classes", self.classes, why)
        if self.texts and found.captions is not None:
            told = found.captions
            why = f"{told.different:,} different captions; the numbers of a text under our own encoder, ngrams."
            put("model.text_width", TEXT_WIDTH, why)
        if pattern.kind == CONVOLUTIONAL:
            why = "One short vector, which minutes can cover; that of 64 tokens takes days."
            put("model.latent_channels", pattern.model.latent_channels, why)
            put("model.width", pattern.model.width, f"As in {pattern.name}.")
        else:
            self._decide_tokens(draft)
        background = look.background(found.transparent)
        saturated = look.saturated_on(background and background[0])
        activation = "none" if saturated > SATURATED else pattern.model.output_activation
        why = f"{saturated:.0%} of the pixels are pure black or white, where tanh stops learning."
        put("model.output_activation", activation, why)

    def _decide_tokens(self, draft: _Draft) -> None:
        found, pattern, put, size = self.found, draft.pattern, draft.set, draft.model.size
        patch = _patch(draft.side, draft.model.grid)
        assert patch is not None
        put("model.latent_resolution", None)
        tokens = (draft.side // patch) ** 2
        put("model.patch_size", patch, f"{tokens} tokens.")
        written = draft.settings["model"]
        for name, why in (("encoder", f"As in {pattern.name}."), ("decoder", "")):
            put(f"model.{name}", size or written.get(name, getattr(pattern.model, name)), why)
        numbers, compression = found.channels * patch**2, pattern.model.compression
        channels = int(numbers / compression) if compression else max(1, round(numbers * 3 / 8))
        if not compression:
            put("model.latent_channels", channels, "3/8 of the numbers of an image.")
        why = f"For a latent of {tokens * channels:,} numbers; small ones leave little empty space on the sphere."
        put("model.max_angle", noise_angle(tokens * channels), why)

    def _decide_training(self, draft: _Draft) -> None:
        count, pattern, put = self.found.count, draft.pattern, draft.set
        if self.photos and pattern.perceptual != "none":
            put("perceptual", "auto", f"Photos gain most from it; here it is {available_provider()}.")
        else:
            put("perceptual", "none", "The perceptual networks know photos, not drawings, writing or few pixels.")
            put("loss.perceptual_reconstruction", 0)
            put("loss.perceptual_consistency", 0)
        if not (self.classes or self.texts):
            put("loss.label_dropout", None)
            for key in ("guidance", "guidance_at", "prior_angle"):
                put(f"sampling.{key}", None)
        batch = min(pattern.train.batch_size, max(16, 1 << (count.bit_length() - 1)))
        put("train.batch_size", batch, f"For {count:,} images.")
        for key in ("train.epochs", "train.steps", "optimizer.warmup_epochs", "optimizer.warmup_steps"):
            put(key, None)

    def fits_memory(self, draft: _Draft) -> bool:
        """Decide on micro-batches and recomputing; False where nothing helps."""
        if self.memory is None:
            return True
        available, kind = self.memory, self.device.type
        recipe = draft.recipe()
        decoded = self.found.count * recipe.model.image_channels * recipe.model.image_size**2
        if kind == "cpu" and decoded <= recipe.data.cache_mb << 20:  # the set is kept in the same memory
            available = max(0, available - decoded)
        how: dict[str, Any] = {"precision": self.precision, "device_type": kind, "available": available}
        best, recompute = largest_micro_batch(recipe, **how), False
        if best < LEAST_PASS and (again := largest_micro_batch(recomputing(recipe), **how)) > best:
            best, recompute = again, True
        if best and (best < recipe.train.batch_size or recompute):
            why = f"About {best} images at a time fit into {readable(self.memory)}; the result stays the same."
            draft.set("train.micro_batch", best if kind == "cpu" else "auto", why)
            draft.set("train.recompute", recompute or None)
        return best > 0

    def decide_length(self, draft: _Draft, seconds: float) -> int:
        """Decide on the steps, of so many seconds each, and on what follows from them; return the steps."""
        count, batch, put = self.found.count, draft.settings["train"]["batch_size"], draft.set
        epochs = draft.pattern.train.epochs or LAPTOP_EPOCHS[self.hours is not None]
        wanted, possible = max(epochs * count, draft.model.shown) / batch, self.limit * 3600 / seconds
        steps = _round_down(min(wanted, possible))
        why = f"{steps * batch / count:.3g} epochs of {count:,} images, {duration(steps * seconds / 3600)} here"
        put("train.steps", steps, f"{why}{'; all the time there is' if wanted > possible else ''}.")
        warmup = min(draft.pattern.warmup_steps(count), max(1, steps // 10))
        put("optimizer.warmup_steps", warmup, f"{warmup / steps:.1%} of the run.")
        ema = min(0.9997, round(1 - 1 / max(1.0, steps / 10), 4))
        put("train.ema", ema, "Over about a tenth of the run, 3000 steps at most.")
        every = _round_down(min(1000, round(600 / seconds), steps / 5))
        put("train.checkpoint_every", every, f"{duration(every * seconds / 3600)}, lost at most.")
        put("train.preview_every", _round_down(steps / 10), "Ten previews.")
        return steps

    def expectation(self, draft: _Draft, minutes: float) -> str:
        """Tell what a model like it was measured to do; nothing where nobody has measured one."""
        if self.texts or not self.classes or draft.pattern.kind != CONVOLUTIONAL:
            return ""
        return expectation(comparable(not self.photos, draft.side, self.found.count, minutes))

    def warnings(self, draft: _Draft, shown: int) -> Iterator[str]:
        """Tell the user, a line each, what to know of a run that shows so many images, repeats counted."""
        count, needed = self.found.count, draft.model.shown
        yield from data_warnings(self.found)
        if count < FEW_IMAGES:
            yield f"with {count} images a trained model of this size is the better start: train with --init MODEL"
        if shown < max(count, needed / 2):
            yield (
                f"the run shows {shown:,} images ({shown / count:.2f} of an epoch), and {draft.title} should see about "
                f"{needed:,}: expect blurs; give more hours, a smaller image size, or a faster device"
            )
        if draft.side > self.native:
            yield f"the images suit {self.native} px and are enlarged to {draft.side}, which adds work and no detail"


@functools.cache
def _kind(name: str) -> str:
    """Return the kind of model that a shipped recipe trains."""
    return load_recipe(name).kind


def _native_size(found: SourceStatistics, asked: int | None) -> int:
    if found.image_size is None:
        reason = f"; the first: {found.bad[0].reason}" if found.bad else ""
        raise DataError(f"none of the {found.examined} images that were examined can be read{reason}")
    if found.image_size < SIDES[0] and asked is None:
        raise DataError(
            f"the images of {found.name} are {found.image_size} px small; enlarge them by --image-size {2 * SIDES[0]}"
        )
    return found.image_size


def _patch(side: int, grid: int) -> int | None:
    """Return the divisor that makes about so many tokens a side; None if it is off by more than 2."""
    off, patch = min((abs(math.log(side / patch / grid)), -patch) for patch in range(1, side) if side % patch == 0)
    return -patch if off <= math.log(2) + 1e-9 else None


def _round_down(number: float) -> int:
    """Return the number with two digits that count, 1 at least."""
    whole = max(1, int(number))
    unit = int(10 ** max(0, len(str(whole)) - 2))
    return whole // unit * unit
