"""A recipe fitted to a data set and a device: the largest model of a table that data, time and memory carry.

The recipe is a shipped one, with what the images decide (flips, background, classes, output activation ...) put in
place of its own settings, each with its reason in a line. Rules of thumb are named constants.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import yaml

from spheregen.data import SourceStatistics
from spheregen.data.statistics import Look, data_warnings, learnt_classes
from spheregen.devices import available_memory
from spheregen.errors import ConfigError, DataError
from spheregen.family.recipe import Recipe
from spheregen.measure.timing import matmul_peak
from spheregen.networks.perceptual import available_provider
from spheregen.training.estimate import (
    EFFICIENCY,
    SAFE_SHARE,
    estimate_memory,
    estimate_time,
    largest_micro_batch,
    readable,
    step_cost,
)
from spheregen.training.recipe import build_recipe, load_recipe, shipped_recipes

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
DEFAULT_CACHE = 2 << 30  # bytes that recipes keep in memory by default

# Latent numbers and the noise angle of three shipped recipes; between them the angle follows the logarithm.
ANGLES = ((24, 53.0), (2048, 80.0), (8192, 80.0), (65_536, 85.0))


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


MODEL_SIZES = (
    ModelSize("nano", "digits", (4, 11), 2, 50_000),
    ModelSize("nano", "digits", (12, 23), 4, 50_000),
    ModelSize("laptop", "cifar10-laptop", (24, 55), 8, 30_000),
    ModelSize("laptop", "flowers-laptop", (56, 95), 8, 30_000),
    ModelSize("laptop", "flowers-laptop", (96, 1024), 16, 200_000),
    ModelSize("small", "cifar10", (24, 55), 8, 2_000_000, 500, "small"),
    ModelSize("small", "flowers102", (56, 1024), 16, 2_000_000, 500, "small", "animal-faces"),
    ModelSize("base", "cifar10", (24, 55), 16, 10_000_000, 5000),
    ModelSize("base", "flowers102", (56, 1024), 32, 3_000_000, 5000, "base", "animal-faces"),
    ModelSize("large", "flowers102", (96, 1024), 32, 5_000_000, 5000, None, "animal-faces"),
    ModelSize("large", "imagenet-l", (192, 1024), 32, 20_000_000, 500_000),
)
"""From the smallest up. Of each data set those count whose image size does not fall below that of the one before."""


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

    def yaml(self) -> str:
        """Return the recipe as YAML, the reasons as comments above their settings."""
        text = ""
        for line, path in _yaml_lines(self.settings):
            indent = " " * (len(line) - len(line.lstrip()))
            text += f"{indent}# {self.reasons[path]}\n" if path in self.reasons else ""
            text += f"{line}\n"
        return text


class Clock:
    """How long a training step takes on a device of this machine."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self._device, self._precision = device, precision

    def guess(self, recipe: Recipe) -> float:
        """Return the seconds of a step by counting operations."""
        return recipe.train.batch_size * step_cost(recipe).flops_per_image / (EFFICIENCY * self._peak)

    def measure(self, recipe: Recipe) -> float:
        """Return the seconds of a step by trying, for about five seconds."""
        return estimate_time(recipe, None, self._device, self._precision, budget=5.0).seconds_per_step

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
    clock: Clock | None = None,
) -> Suggestion:
    """Return the recipe that suits these images and this device.

    Args:
        statistics: from `source_statistics`.
        look: from `look_at`.
        source: what `data.source` shall be, as the user writes it.
        device, precision: of the run, see `devices.choose_precision`.
        hours: how long it may take; None: `DEFAULT_HOURS`, and no more epochs than such data take.
        image_size: side in pixels, 4 to 1024; None: what images and device allow.
        clock: tells how long a step takes; None measures it on the device, in about ten seconds.

    Raises:
        ConfigError: hours or image_size is impossible, or not even the smallest model fits into memory.
        DataError: no image can be read, or they are too small.
    """
    check_wishes(hours, image_size)
    case = _Case(statistics, look, source, device, precision, hours, image_size)
    clock = clock or Clock(device, precision)
    limit = hours or DEFAULT_HOURS.get(device.type, DEFAULT_HOURS["cpu"])
    given = "the time that you gave" if hours else "the time that this device gets without --hours"
    drafts: list[_Draft] = []
    stop = ""
    for model in MODEL_SIZES:
        draft = case.draft(model)
        if draft is None or (drafts and draft.side < drafts[-1].side):
            continue
        if drafts and statistics.count < model.images:
            stop = f"{draft.title} asks for at least {model.images:,} different images"
            break
        recipe = draft.recipe()
        needed = model.shown / recipe.train.batch_size * clock.guess(recipe) / 3600
        if drafts and needed > limit:
            stop = f"{draft.title} takes {duration(needed)} to see {model.shown:,} images, more than {given}"
            break
        drafts.append(draft)
    while not case.fits_memory(drafts[-1]):
        draft = drafts.pop()
        stop = f"{draft.title} does not fit into the {readable(case.memory or 0)} of memory that are available"
        if not drafts:
            raise ConfigError(f"not even {stop}; free some, or use another device")
    draft = drafts[-1]
    if stop:
        reason = draft.reasons["model.encoder"]
        draft.reasons["model.encoder"] = f"{reason[:-1]}; no larger, for {stop}."
    seconds = clock.measure(draft.recipe())
    shown = case.run_length(draft, limit, given, seconds)
    return Suggestion(
        recipe=draft.recipe(),
        settings=draft.settings,
        reasons=draft.reasons,
        warnings=tuple(case.warnings(draft, shown)),
        seconds_per_step=seconds,
        hours=draft.settings["train"]["steps"] * seconds / 3600,
        epochs=shown / statistics.count,
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
    if _patch(image_size, lowest.grid) is None:
        raise ConfigError(
            f"no patch divides an image of {image_size} px into a fit number of tokens; choose a multiple of 8 from 32 "
            f"px on, of 4 below, such as {divisible(image_size)}"
        )


def divisible(side: int) -> int:
    """Return the side, lowered to a number that patches divide."""
    unit = 8 if side >= 32 else 4 if side >= 8 else 2
    return side // unit * unit


def noise_angle(numbers: int) -> float:
    """Return `model.max_angle` for a latent of so many numbers, in whole degrees from 45 to 85."""
    pairs = list(itertools.pairwise(ANGLES))
    (a, low), (b, high) = next((pair for pair in pairs if numbers < pair[1][0]), pairs[-1])
    angle = low + (high - low) * math.log(numbers / a) / math.log(b / a)
    return float(round(min(85.0, max(45.0, angle))))


def duration(hours: float) -> str:
    """Return hours for people: `40 minutes`, `2.5 hours`, `9 days`."""
    units = {"days": (72.0, 24.0), "hours": (5 / 3, 1.0), "minutes": (1 / 36, 1 / 60), "seconds": (0.0, 1 / 3600)}
    unit, size = next((unit, size) for unit, (least, size) in units.items() if hours >= least)
    value = hours / size
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


class _Draft:
    """The settings of a recipe in the making, and the reasons of those that are decided here."""

    def __init__(self, model: ModelSize, side: int, patch: int, pattern: str) -> None:
        self.model, self.side, self.patch = model, side, patch
        self.pattern: Any = load_recipe(pattern)
        values = self.pattern.model_dump(mode="json")  # as their own types: YAML takes 1e-4 for text
        written = yaml.safe_load(shipped_recipes()[pattern])
        self.settings: dict[str, Any] = {
            name: {key: copy.deepcopy(value) if isinstance(value, dict) else values[name][key]
                   for key, value in section.items()} if isinstance(section, dict) else section
            for name, section in written.items()
        }  # fmt: skip
        self.reasons: dict[str, str] = {}

    @property
    def title(self) -> str:
        return f"the {self.model.name} model at {self.side} px"

    def set(self, key: str, value: Any, why: str = "") -> None:
        """Decide a setting by its dotted key; None leaves it to its default."""
        section, _, name = key.rpartition(".")
        place = self.settings.setdefault(section, {}) if section else self.settings
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value
        if why:
            self.reasons[key] = why

    def recipe(self) -> Recipe:
        """Return the recipe; of one step while its length is not decided."""
        settings = copy.deepcopy(self.settings)
        if not {"steps", "epochs"} & settings["train"].keys():
            settings["train"]["steps"] = 1
        return build_recipe({"name": "suggested", **settings}, "the suggestion")


@dataclass
class _Case:
    """The facts that decisions rest on."""

    found: SourceStatistics
    look: Look
    source: str
    device: torch.device
    precision: str
    hours: float | None
    asked: int | None

    def __post_init__(self) -> None:
        self.classes = learnt_classes(self.found)
        self.memory = available_memory(self.device)
        self.native = _native_size(self.found, self.asked)
        self.photos = self.look.flips_allowed and self.native >= 16 and self.look.two_toned < STROKES

    def draft(self, model: ModelSize) -> _Draft | None:
        """Return all decisions but the length of the run; None where the model has no size for these images."""
        side = self._side(model)
        patch = _patch(side, model.grid) if side else None
        if side is None or patch is None:
            return None
        labelled = model.like if self.classes else model.unlabelled or model.like
        draft = _Draft(model, side, patch, labelled)
        self._decide_data(draft)
        self._decide_model(draft)
        self._decide_losses(draft)
        return draft

    def _side(self, model: ModelSize) -> int | None:
        wanted = self.asked or divisible(min(self.native, PUBLISHED_SIDE))
        least, most = model.sides
        if least <= wanted <= most:
            return wanted
        if self.asked or wanted < least or most < 16:  # 8 px are for images of 8 px
            return None
        return 1 << (most.bit_length() - 1)

    def _decide_data(self, draft: _Draft) -> None:
        found, look, side = self.found, self.look, draft.side
        kinds = f"{self.classes} classes" if self.classes else "unconditional"
        machine = "CPU" if self.device.type == "cpu" else "GPU"
        draft.settings = {"description": "", "data": {}, **draft.settings}
        draft.set("description", f"{found.name} at {side} px, {kinds}; suggested for a {machine}.")
        draft.settings["data"] = {}
        draft.set("data.source", self.source, f"{found.count:,} images, {found.examined:,} of them examined.")
        if found.split != "train":
            draft.set("data.split", found.split)
        if found.bad:
            draft.set("data.on_error", "skip", f"{len(found.bad)} images cannot be read and are left out.")
        share = f"{look.two_toned:.0%} of the pixels are nearly black or white"
        if not look.flips_allowed:
            why = f"A mirrored image of {found.name} means something else."
        elif not self.photos or found.channels == 1:
            why = f"Signs, drawings and scans must not be mirrored ({share}). Set true if a mirror image is as good."
        else:
            why = f"Taken for photos (only {share}), mirrored ones double the data. Set false for writing or maps."
        draft.set("data.flips", self.photos and found.channels == 3, why)
        if look.padded:
            draft.set("data.fit", "pad", f"A square crop would lose more than half of {look.torn:.0%} of the images.")
        elif look.lost:
            draft.set("data.fit", "crop", f"A square crop loses {look.lost:.0%} of the average image.")
        spreads = [spread for spread in (found.width, found.height) if spread]
        if any({spread.smallest, spread.largest} != {side} for spread in spreads):
            if min(spread.median for spread in spreads) < side and not self.photos:
                draft.set("data.resize", "nearest", "Enlarged images of few pixels keep their hard edges.")
            elif side > 64:
                draft.set("data.resize", "published", "Bicubic, as published.")
            else:
                draft.set("data.resize", "adm", "Averages pixels; the published nearest neighbour would drop some.")
        if background := look.background(found.transparent):
            draft.set("data.background", list(background[0]), f"Behind padding and transparency; {background[1]}.")
        decoded = found.count * found.channels * side**2
        free = available_memory(torch.device("cpu")) or 2 * DEFAULT_CACHE
        if decoded > free // 2:
            draft.set("data.cache_mb", 0, f"The decoded set takes {readable(decoded)}, too much to keep in memory.")
            if self.device.type != "cpu":
                draft.set("data.workers", max(1, min(8, (os.cpu_count() or 1) - 1)), "They decode it again and again.")
        elif decoded > DEFAULT_CACHE:
            why = f"The decoded set takes {readable(decoded)} of the {readable(free)} that are free, and is kept."
            draft.set("data.cache_mb", math.ceil(decoded / 2**20), why)

    def _decide_model(self, draft: _Draft) -> None:
        found, side, patch, pattern = self.found, draft.side, draft.patch, draft.pattern.name
        asked = "As you asked; the" if self.asked else "The"
        larger = f" Models beyond {PUBLISHED_SIDE} px must be asked for." if self.native > PUBLISHED_SIDE else ""
        draft.set("model.image_size", side, f"{asked} images suit {self.native} px.{larger}")
        draft.set("model.image_channels", found.channels, f"{found.grey:,} of {found.examined:,} images are grey.")
        counts = found.class_counts
        why = "No labels, or none that a model can learn from: unconditional."
        if self.classes:
            why = f"The images are sorted into classes, {min(counts)} to {max(counts)} each."
        draft.set("model.num_classes", self.classes, why)
        draft.set("model.latent_resolution", None)
        draft.set("model.patch_size", patch, f"{side // patch} x {side // patch} tokens.")
        sized = f" with {draft.model.size} networks" if draft.model.size else ""
        size = draft.model.size or draft.settings["model"]["encoder"]
        draft.set("model.encoder", size, f"As in {pattern}{sized}.")
        draft.set("model.decoder", draft.model.size or draft.settings["model"]["decoder"])
        numbers, compression = found.channels * patch**2, draft.settings["model"].get("compression")
        channels = int(numbers / compression) if compression else max(1, round(numbers * 3 / 8))
        if not compression:
            draft.set("model.latent_channels", channels, f"3/8 of the numbers of an image, as in {pattern}.")
        latent = (side // patch) ** 2 * channels
        why = f"The latent has {latent:,} numbers; small ones leave little empty space on the sphere."
        draft.set("model.max_angle", noise_angle(latent), why)
        background = self.look.background(found.transparent)
        saturated = self.look.saturated_on(background and background[0])
        share = f"{saturated:.0%} of the pixels are pure black or white"
        if saturated > SATURATED:
            draft.set("model.output_activation", "none", f"{share}, where tanh stops learning.")
        elif draft.settings["model"].get("output_activation") != "none":
            draft.set("model.output_activation", "tanh", f"Only {share}, so the published tanh serves.")

    def _decide_losses(self, draft: _Draft) -> None:
        count, pattern = self.found.count, draft.pattern
        if self.photos and pattern.perceptual != "none":
            draft.set("perceptual", "auto", f"Photos gain most from it; here it is {available_provider()}.")
        else:
            for name in ("perceptual_reconstruction", "perceptual_consistency"):
                draft.set(f"loss.{name}", 0)
            draft.set("perceptual", "none", "The perceptual networks know photos, not drawings, writing or few pixels.")
        if not self.classes:
            draft.set("loss.label_dropout", None)
            draft.set("sampling.guidance", None)
        batch = min(pattern.train.batch_size, max(16, 1 << (count.bit_length() - 1)))
        draft.set(
            "train.batch_size", batch, f"There are only {count} images." if batch < pattern.train.batch_size else ""
        )
        for key in ("train.epochs", "train.steps", "optimizer.warmup_epochs", "optimizer.warmup_steps"):
            draft.set(key, None)

    def fits_memory(self, draft: _Draft) -> bool:
        """Decide on micro-batches and recomputing; False where nothing helps."""
        if self.memory is None:
            return True
        available, kind = self.memory, self.device.type
        recipe = draft.recipe()
        decoded = self.found.count * recipe.model.image_channels * recipe.model.image_size**2
        if kind == "cpu" and decoded <= recipe.data.cache_mb << 20:  # the set is kept in the same memory
            available = max(0, available - decoded)
        best, recompute = 0, False
        for again in (False, True):
            changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"recompute": again})})
            count = largest_micro_batch(changed, precision=self.precision, device_type=kind, available=available)
            needed = estimate_memory(changed, precision=self.precision, device_type=kind, micro_batch=count).total
            if needed <= SAFE_SHARE * available and count > best:
                best, recompute = count, again
            if best >= LEAST_PASS:
                break
        if best and (best < recipe.train.batch_size or recompute):
            why = f"About {best} images at a time fit into {readable(self.memory)}; the result stays the same."
            draft.set("train.micro_batch", best if kind == "cpu" else "auto", why)
            draft.set("train.recompute", recompute or None)
        return best > 0

    def run_length(self, draft: _Draft, hours: float, given: str, seconds: float) -> int:
        """Decide on the steps and what follows from them; return how many images the run shows."""
        count, batch, needed = self.found.count, draft.settings["train"]["batch_size"], draft.model.shown
        epochs = draft.pattern.train.epochs or LAPTOP_EPOCHS[self.hours is not None]
        wanted, possible = max(epochs * count, needed) / batch, hours * 3600 / seconds
        steps = _round_down(min(wanted, possible))
        why = f"{steps * batch / count:.3g} epochs of {count:,} images: about {duration(steps * seconds / 3600)} here"
        draft.set(
            "train.steps", steps, f"{why}, at {seconds:.2g} s a step" + (f"; {given}." if wanted > possible else ".")
        )
        warmup = min(draft.pattern.warmup_steps(count), max(1, steps // 10))
        draft.set("optimizer.warmup_steps", warmup, f"{warmup / steps:.1%} of the run.")
        ema = min(0.9997, round(1 - 1 / max(1.0, steps / 10), 4))
        draft.set("train.ema", ema, "Over about a tenth of the run, 3000 steps at most.")
        every = _round_down(min(1000, round(600 / seconds), steps / 5))
        why = f"An interruption costs {duration(every * seconds / 3600)} at most."
        draft.set("train.checkpoint_every", every, why)
        draft.set("train.preview_every", _round_down(steps / 10), "Ten previews.")
        return int(steps * batch)

    def warnings(self, draft: _Draft, shown: int) -> Iterator[str]:
        """Tell the user, a line each, what to know of a run that shows so many images, repeats counted."""
        found, needed = self.found, draft.model.shown
        yield from data_warnings(found)
        if found.count < FEW_IMAGES:
            yield f"with {found.count} images a trained model of this size is the better start: train with --init MODEL"
        if shown < found.count:
            yield f"only {shown / found.count:.2f} of an epoch fits into the time; give more hours or smaller images"
        if shown < needed / 2:
            yield (
                f"{draft.title} sees {shown:,} images and should see about {needed:,}: expect blurs; give more hours, "
                "a smaller image size, or a faster device"
            )
        if draft.side > self.native:
            yield f"the images suit {self.native} px and are enlarged to {draft.side}, which adds work and no detail"


def _native_size(found: SourceStatistics, asked: int | None) -> int:
    if found.image_size is None:
        reason = f"; the first: {found.bad[0].reason}" if found.bad else ""
        raise DataError(f"none of the {found.examined} images that were examined can be read{reason}")
    if found.image_size < SIDES[0] and asked is None:
        raise DataError(
            f"the images of {found.name} are {found.image_size} px small and models start at {SIDES[0]} px; enlarge "
            "them by giving an image size (--image-size 8)"
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


def _yaml_lines(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each line of the YAML file and the dotted key that it sets; sizes of networks stay on one line."""

    def entry(key: str, value: Any) -> str:
        listed = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
        return f"{key}: {listed.strip()[1:-1]}"

    for name, section in settings.items():
        if not isinstance(section, dict):
            yield entry(name, section), name
        elif section:
            yield f"{name}:", name
            for key, value in section.items():
                yield f"  {entry(key, value)}", f"{name}.{key}"
