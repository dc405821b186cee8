"""A recipe fitted to a data set and a device, with the reason for each setting.

Models stand on a ladder, each larger than the one below and each with a shipped recipe as its pattern. The suggestion
climbs as far as the pictures, the time and the memory carry. What the data themselves decide (flips, background,
classes, output activation ...) comes from counts and from a look at a sample. Rules of thumb are named constants.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image

from spheregen.data import ImageOptions, ImageSource, SourceStatistics, load_image
from spheregen.devices import available_memory
from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.peak import matmul_peak
from spheregen.losses.perceptual import available_provider
from spheregen.training.fitting import SAFE_SHARE, largest_micro_batch, readable
from spheregen.training.memory import estimate_memory
from spheregen.training.recipe import Recipe, build_recipe, load_recipe, shipped_recipes
from spheregen.training.timing import estimate_time, flops_per_image

Colour = tuple[int, int, int]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

DEFAULT_HOURS: Mapping[str, float] = {"cpu": 3.0, "cuda": 24.0, "mps": 6.0}
"""How long a run may take, by device, where nobody says."""
SIDES = (4, 1024)
"""The image sizes in pixels for which there is a model."""
PUBLISHED_SIDE = 256  # the published models are no larger, so larger ones must be asked for
LAPTOP_EPOCHS = (300, 1000)  # of models without a published length: by default, and the most if hours are given
FEW_PICTURES = 1000  # fewer than this are learnt by heart
FEW_OF_A_CLASS = 20
UNBALANCED = 0.1  # smallest by largest class
MANY_COPIES = 0.05  # share of exact duplicates
SATURATED = 0.1  # share of pure black and white pixels from which tanh is not trusted
STROKES = 0.75  # share of nearly black or white pixels from which pictures are taken for drawings or writing
TORN = 0.25  # share of pictures of which a square crop loses more than half, from which they are padded
ONE_BORDER = 0.5  # share of pictures whose borders must agree to give the background
LIGHT = 0.7  # mean brightness from which drawings on transparency get a dark background
EFFICIENCY = 0.4  # of a training step against square matrix products: small models 0.2 to 0.6, large ones 0.8 on a CPU
LEAST_PASS = 8  # images; where fewer fit, blocks are computed twice instead
LARGEST_CACHE = 2 << 30  # bytes that recipes keep in memory by default
FULLY_HELD = 1 << 30  # encoded bytes of a set that is read in any order

# Latent numbers and the noise angle of three shipped recipes; between them the angle follows the logarithm.
ANGLES = ((24, 53.0), (2048, 80.0), (8192, 85.0))


@dataclass(frozen=True)
class Reason:
    """One decision: the settings that it makes and why."""

    settings: Mapping[str, Any]  # dotted keys of the recipe, all of one section, and their values
    why: str  # for people, with the facts


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A recipe that `train` runs as it is, and how it came about."""

    recipe: Recipe
    reasons: tuple[Reason, ...]
    """In the order of a recipe's sections; together their settings are all that the recipe sets."""
    warnings: tuple[str, ...]  # what the user should know before the run
    seconds_per_step: float
    hours: float  # of the whole run, without previews and checkpoints
    epochs: float  # passes over the data


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a sample of the pictures shows. Shares are 0 to 1."""

    pictures: int  # that were looked at
    flips_allowed: bool  # false where the source itself says that its mirror images mean something else
    in_blocks: bool  # the source is stored in runs that are fast to read together
    saturated: float  # share of opaque pixels that are pure black or white, within 2 of 255
    two_toned: float  # share of opaque pixels that are nearly black or white, within 40 of 255
    clear: float  # share of transparent pixels
    brightness: float  # mean of the opaque pixels of pictures with transparency; 0 where there are none
    torn: float  # share of pictures of which a centre crop loses more than half
    lost: float  # what a centre crop loses of the median picture
    bars: float  # share of padding, if all are padded to squares
    border: Colour  # the median colour along the edges
    one_border: float  # share of pictures with edges of that one colour


class Clock(Protocol):
    """How long a training step takes."""

    def guess(self, recipe: Recipe) -> float:
        """Seconds of a step by counting operations, at no cost."""

    def measure(self, recipe: Recipe) -> float:
        """Seconds of a step by trying; may take some seconds."""


class DeviceClock:
    """The clock of a device in this machine.

    Args:
        device, precision: of the run.
        budget: seconds that one measurement may take, about.
    """

    def __init__(self, device: torch.device, precision: str, *, budget: float = 5.0) -> None:
        self._device, self._precision, self._budget = device, precision, budget

    def guess(self, recipe: Recipe) -> float:
        return recipe.train.batch_size * flops_per_image(recipe) / (EFFICIENCY * self._peak)

    def measure(self, recipe: Recipe) -> float:
        estimate = estimate_time(recipe, None, self._device, self._precision, budget=self._budget)
        return estimate.seconds_per_step

    @functools.cached_property
    def _peak(self) -> float:
        return float(matmul_peak(self._device, self._precision))


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A model on the ladder."""

    name: str
    like: str  # the shipped recipe whose settings it takes
    sides: tuple[int, int]  # smallest and largest image size in pixels
    grid: int  # tokens along a side, about; a patch that divides the image decides
    size: str | None = None  # of encoder and decoder; None: the recipe's
    pictures: int
    """That a run must show it, repeats counted, to be worth it: a rule of thumb, below what the shipped recipe sees."""
    images: int = 0  # different ones that the data set must have


LADDER = (
    Rung(name="nano", like="digits", sides=(4, 11), grid=2, pictures=50_000),
    Rung(name="nano", like="digits", sides=(12, 23), grid=4, pictures=50_000),
    Rung(name="laptop", like="cifar10-laptop", sides=(24, 55), grid=8, pictures=30_000),
    Rung(name="laptop", like="flowers-laptop", sides=(56, 95), grid=8, pictures=30_000),
    Rung(name="laptop", like="flowers-laptop", sides=(96, 191), grid=16, pictures=200_000),
    Rung(name="laptop", like="flowers-laptop", sides=(192, 1024), grid=16, pictures=1_000_000),
    Rung(name="small", like="cifar10", sides=(24, 55), grid=8, size="small", pictures=2_000_000, images=500),
    Rung(name="small", like="flowers102", sides=(56, 1024), grid=16, size="small", pictures=2_000_000, images=500),
    Rung(name="base", like="cifar10", sides=(24, 55), grid=16, pictures=10_000_000, images=5000),
    Rung(name="base", like="flowers102", sides=(56, 1024), grid=32, size="base", pictures=3_000_000, images=5000),
    Rung(name="large", like="flowers102", sides=(96, 1024), grid=32, pictures=5_000_000, images=5000),
    Rung(name="large", like="imagenet-l", sides=(192, 1024), grid=32, pictures=20_000_000, images=500_000),
)
"""From the smallest up. Of each data set those count whose image size does not fall below that of the one before."""

_UNLABELLED = {"flowers102": "animal-faces"}  # the pattern of 256 px without classes


@dataclass(frozen=True, kw_only=True)
class _Case:
    """The facts that decisions rest on."""

    source: str
    statistics: SourceStatistics
    look: Look
    device: torch.device
    precision: str
    hours: float
    hours_given: bool
    native: int  # the image size that suits the pictures
    asked: int | None  # the image size that the user wants
    memory: int | None  # bytes available on the device
    host: int | None  # bytes available to the data
    cores: int

    @property
    def classes(self) -> int:
        """Classes that the model learns; 0 = unconditional."""
        counts = self.statistics.class_counts
        useful = len(counts) > 1 and len(counts) * 2 <= self.statistics.count
        return len(counts) if useful else 0

    @property
    def machine(self) -> str:
        return "CPU" if self.device.type == "cpu" else "GPU"

    @property
    def photos(self) -> bool:
        """False for writing, drawings in two tones and what is too small to tell."""
        return self.look.flips_allowed and self.native >= 16 and self.look.two_toned < STROKES

    @property
    def padded(self) -> bool:
        return self.look.torn > TORN

    @property
    def background(self) -> Colour | None:
        """None where none shows."""
        see_through = self.statistics.transparent > 0 or self.look.clear > 0
        if not see_through and not self.padded:
            return None
        if self.look.one_border > ONE_BORDER or not see_through:
            return self.look.border
        return (0, 0, 0) if self.look.brightness > LIGHT * 255 else (255, 255, 255)

    @property
    def saturated(self) -> float:
        """Share of pure black and white pixels of what the model will see."""
        pure = float(self.background in ((0, 0, 0), (255, 255, 255)))
        share = self.look.clear * pure + (1 - self.look.clear) * self.look.saturated
        return self.look.bars * pure + (1 - self.look.bars) * share if self.padded else share


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A rung for these data."""

    rung: Rung
    side: int  # pixels
    wanted: int  # pixels; what the pictures allow, or the user asked for
    patch: int  # pixels
    pattern: Recipe  # the shipped recipe
    own: Mapping[str, Any]  # what the recipe's file sets, by dotted key; sizes stay whole
    stop: str = ""  # what keeps the run from the next rung

    @property
    def grid(self) -> int:
        return self.side // self.patch

    @property
    def title(self) -> str:
        return f"the {self.rung.name} model at {self.side} px"

    @property
    def limited(self) -> bool:
        """The image size is smaller than the pictures allow."""
        return self.side < self.wanted

    @property
    def published(self) -> bool:
        return self.pattern.train.epochs is not None


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How a run fits into memory."""

    micro_batch: int
    recompute: bool


def look_at(source: ImageSource, limit: int = 200) -> Look:
    """Look at some pictures, evenly spread; those that cannot be read are passed over.

    Raises:
        DataError: none can be read.
        ConfigError: limit is below 1.
    """
    if limit < 1:
        raise ConfigError(f"limit is {limit}; give a number of images from 1 up")
    count = min(limit, len(source))
    seen: list[_Seen] = []
    for place in range(count):
        with contextlib.suppress(DataError):
            seen.append(_see(source.read(place * len(source) // count)))
    source.release()
    if not seen:
        raise DataError(f"none of the {count} images of {source.name} that were tried can be read; see spheregen stats")
    pixels = sum(one.pixels for one in seen)
    opaque = max(1, sum(one.opaque for one in seen))
    drawn = [one for one in seen if one.opaque < one.pixels]
    lost = [one.lost for one in seen]
    edges = np.concatenate([one.edge for one in seen])
    border = np.median(edges, axis=0).astype(np.int64) if len(edges) else np.full(3, 255)
    agreeing = [_near(one.edge, border).mean() > 0.75 for one in seen if len(one.edge)]
    red, green, blue = border.tolist()
    return Look(
        pictures=len(seen),
        flips_allowed=source.flips_allowed,
        in_blocks=source.blocks() is not None,
        saturated=sum(one.saturated for one in seen) / opaque,
        two_toned=sum(one.two_toned for one in seen) / opaque,
        clear=1 - sum(one.opaque for one in seen) / pixels,
        brightness=sum(one.brightness for one in drawn) / max(1, sum(one.opaque for one in drawn)),
        torn=float(np.mean([part > 0.5 for part in lost])),
        lost=float(np.median(lost)),
        bars=float(np.mean(lost)),  # a square around a picture is as empty as a square inside leaves out
        border=(red, green, blue),
        one_border=float(np.mean(agreeing)) if agreeing else 0.0,
    )


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
    """The recipe that suits these pictures and this device.

    Args:
        statistics: from `source_statistics`.
        look: from `look_at`.
        source: what `data.source` shall be, as the user writes it.
        device, precision: of the run, see `devices.choose_precision`.
        hours: how long it may take; None: `DEFAULT_HOURS`, and no more epochs than such data take.
        image_size: side in pixels, 4 to 1024; None: what pictures and device allow.
        clock: tells how long a step takes; None measures it on the device, in about ten seconds.

    Raises:
        ConfigError: hours or image_size is impossible, or not even the smallest model fits into memory.
        DataError: no picture can be read, or they are too small.
    """
    case = _case(statistics, look, source, device, precision, hours, image_size)
    clock = clock or DeviceClock(device, precision)
    place, fit = _climb(case, _ladder(case), clock)
    first = [*_decide(case, place), *_memory_settings(case, place, fit)]
    draft = _build(case, place, [*first, Reason({"train.steps": 1}, "")])
    seconds = clock.measure(_as_run(draft))
    steps, length = _length(case, place, draft.train.batch_size, seconds)
    reasons = _sorted([*first, length, *_rhythm(case, place, draft.train.batch_size, steps, seconds)])
    recipe = _build(case, place, reasons)
    epochs = steps * draft.train.batch_size / statistics.count
    return Suggestion(
        recipe=recipe,
        reasons=tuple(reasons),
        warnings=tuple(_warnings(case, place, steps * draft.train.batch_size)),
        seconds_per_step=seconds,
        hours=steps * seconds / 3600,
        epochs=epochs,
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
    lowest = next(rung for rung in LADDER if rung.sides[0] <= image_size <= rung.sides[1])
    if _patch(image_size, lowest.grid) is None:
        raise ConfigError(
            f"no patch divides an image of {image_size} px into a fit number of tokens; choose a multiple of 8 from 32 "
            f"px on, of 4 below, such as {_even(image_size)}"
        )


# The sample.


@dataclass(frozen=True, kw_only=True)
class _Seen:
    pixels: int  # of the small version
    opaque: int
    saturated: int
    two_toned: int
    brightness: float  # summed over opaque pixels, of 255 each
    lost: float  # by a centre crop
    edge: Bytes  # (n, 3) opaque pixels along the edges


_THUMBNAIL = 64


def _see(picture: Image.Image) -> _Seen:
    width, height = _upright_size(picture)
    on_black, on_white = (
        load_image(
            picture, ImageOptions(image_size=_THUMBNAIL, fit="pad", resize="nearest", background=(tone, tone, tone))
        ).numpy()
        for tone in (0, 255)
    )
    scale = _THUMBNAIL / max(width, height)
    columns, rows = (max(1, round(side * scale)) for side in (width, height))
    left, top = (_THUMBNAIL - columns) // 2, (_THUMBNAIL - rows) // 2
    inside = np.s_[:, top : top + rows, left : left + columns]
    colours, opaque = on_black[inside], (on_white[inside].astype(np.int16) - on_black[inside]).max(axis=0) < 128
    shown = colours[:, opaque]
    ring = np.ones((rows, columns), dtype=np.bool_)
    ring[1:-1, 1:-1] = False
    return _Seen(
        pixels=rows * columns,
        opaque=int(opaque.sum()),
        saturated=int(_pure(shown, 2).sum()),
        two_toned=int(_pure(shown, 40).sum()),
        brightness=float(shown.mean(axis=0).sum()) if shown.size else 0.0,
        lost=1 - min(width, height) / max(width, height),
        edge=colours[:, ring & opaque].T,
    )


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    with contextlib.suppress(Exception):  # broken EXIF data says nothing about orientation
        if picture.getexif().get(0x0112, 1) >= 5:
            return height, width
    return width, height


def _pure(colours: Bytes, tolerance: int) -> Flags:
    """(3, n) colours: which are black or white within a tolerance."""
    return np.asarray((colours.max(axis=0) <= tolerance) | (colours.min(axis=0) >= 255 - tolerance), dtype=np.bool_)


def _near(edge: Bytes, colour: npt.NDArray[Any]) -> Flags:
    return np.asarray((np.abs(edge.astype(np.int64) - colour) <= 16).all(axis=1))


# The ladder.


def _case(
    statistics: SourceStatistics,
    look: Look,
    source: str,
    device: torch.device,
    precision: str,
    hours: float | None,
    image_size: int | None,
) -> _Case:
    check_wishes(hours, image_size)
    native = statistics.image_size
    if native is None:
        reason = f"; the first: {statistics.bad[0].reason}" if statistics.bad else ""
        raise DataError(f"none of the {statistics.examined} images that were examined can be read{reason}")
    if native < SIDES[0] and image_size is None:
        raise DataError(
            f"the images of {statistics.name} are {native} px small and models start at {SIDES[0]} px; enlarge them by "
            "giving an image size (--image-size 8)"
        )
    return _Case(
        source=source,
        statistics=statistics,
        look=look,
        device=device,
        precision=precision,
        hours=hours or DEFAULT_HOURS.get(device.type, DEFAULT_HOURS["cpu"]),
        hours_given=hours is not None,
        native=native,
        asked=image_size,
        memory=available_memory(device),
        host=available_memory(torch.device("cpu")),
        cores=os.cpu_count() or 1,
    )


def _ladder(case: _Case) -> list[_Place]:
    """The rungs for these pictures, from the smallest model up; the image size never falls."""
    wanted = case.asked or _even(min(case.native, PUBLISHED_SIDE))
    places: list[_Place] = []
    for rung in LADDER:
        side = _side(rung, wanted, exactly=case.asked is not None)
        patch = _patch(side, rung.grid) if side else None
        if side is None or patch is None or (places and side < places[-1].side):
            continue
        like = rung.like if case.classes else _UNLABELLED.get(rung.like, rung.like)
        places.append(_Place(rung=rung, side=side, wanted=wanted, patch=patch, pattern=_pattern(like), own=_own(like)))
    return places


def _side(rung: Rung, wanted: int, *, exactly: bool) -> int | None:
    """The image size of a rung for pictures that allow the wanted one; None where it has none."""
    least, most = rung.sides
    if least <= wanted <= most:
        return wanted
    if exactly or wanted < least or most < 16:  # 8 px are for pictures of 8 px
        return None
    return 1 << (most.bit_length() - 1)


def _even(side: int) -> int:
    """The side, lowered to a number that patches divide."""
    unit = 8 if side >= 32 else 4 if side >= 8 else 2
    return side // unit * unit


def _patch(side: int, grid: int) -> int | None:
    """The divisor that makes about so many tokens a side; None if it is off by more than 2."""
    off, patch = min((abs(math.log(side / patch / grid)), -patch) for patch in range(1, side) if side % patch == 0)
    return -patch if off <= math.log(2) + 1e-9 else None


@functools.cache
def _pattern(like: str) -> Recipe:
    return load_recipe(like)


@functools.cache
def _own(like: str) -> Mapping[str, Any]:
    """What a shipped recipe's file sets, as its own types."""
    dumped = _pattern(like).model_dump(mode="json")
    own: dict[str, Any] = {}
    for section, values in yaml.safe_load(shipped_recipes()[like]).items():
        if isinstance(values, dict):
            for key, value in values.items():
                own[f"{section}.{key}"] = value if isinstance(value, dict) else dumped[section][key]
        else:
            own[section] = values
    return own


def _climb(case: _Case, places: Sequence[_Place], clock: Clock) -> tuple[_Place, _Fit]:
    """The highest place that the data, the time and the memory reach."""
    stop = ""
    reached: list[_Place] = []
    for place in places:
        if reached and (stop := _hindrance(case, place, clock)):
            break
        reached.append(place)
    here = readable(case.memory or 0)
    for place in reversed(reached):
        fit = _fit(case, _as_run(_draft(case, place)))
        if fit is not None:
            return dataclasses.replace(place, stop=stop), fit
        stop = f"{place.title} does not fit into the {here} of memory that are available"
    raise ConfigError(
        f"not even {places[0].title} fits: {here} of memory are available on {case.device.type}; free some, or use "
        "another device"
    )


def _hindrance(case: _Case, place: _Place, clock: Clock) -> str:
    """What keeps a run from a place, its memory aside; empty for nothing."""
    if case.statistics.count < place.rung.images:
        return f"{place.title} asks for at least {_many(place.rung.images)} different pictures"
    draft = _as_run(_draft(case, place))
    needed = place.rung.pictures / draft.train.batch_size * clock.guess(draft) / 3600
    if needed > case.hours:
        return f"{place.title} would take about {_duration(needed)} to see {_many(place.rung.pictures)} pictures"
    return ""


def _draft(case: _Case, place: _Place) -> Recipe:
    """The recipe of a place, of unknown length."""
    return _build(case, place, [*_decide(case, place), Reason({"train.steps": 1}, "")])


def _decide(case: _Case, place: _Place) -> list[Reason]:
    return [reason for decide in _DECISIONS if (reason := decide(case, place))]


def _as_run(recipe: Recipe) -> Recipe:
    """With the perceptual loss that `auto` stands for here, so that estimates know it."""
    return recipe.model_copy(update={"perceptual": _provider()}) if recipe.perceptual == "auto" else recipe


def _provider() -> str:
    return available_provider()


def _fit(case: _Case, recipe: Recipe) -> _Fit | None:
    """How a run fits into memory; None if it does not."""
    share = recipe.train.batch_size
    if case.memory is None:
        return _Fit(micro_batch=share, recompute=False)
    available = case.memory
    if case.device.type == "cpu" and _is_cached(case, recipe):
        available = max(0, available - _decoded(case, recipe))
    best: _Fit | None = None
    for recompute in (False, True):
        changed = recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"recompute": recompute, "micro_batch": None})}
        )
        precision, kind = case.precision, case.device.type
        count = largest_micro_batch(changed, precision=precision, device_type=kind, available=available)
        if count == 1:  # which it also is where nothing fits
            least = estimate_memory(changed, precision=precision, device_type=kind, micro_batch=1)
            if least.total > SAFE_SHARE * available:
                continue
        if best is None or count > best.micro_batch:
            best = _Fit(micro_batch=count, recompute=recompute)
        if count >= min(LEAST_PASS, share):
            break
    return best


def _decoded(case: _Case, recipe: Recipe) -> int:
    return case.statistics.count * recipe.model.image_channels * recipe.model.image_size**2


def _is_cached(case: _Case, recipe: Recipe) -> bool:
    return _decoded(case, recipe) <= recipe.data.cache_mb << 20


# The decisions: each returns its settings and their reason, or None where the defaults do.


def _source(case: _Case, place: _Place) -> Reason:
    found = case.statistics
    settings = {"data.source": case.source}
    if found.split != "train":
        settings["data.split"] = found.split
    part = "all were examined" if found.examined == found.count else f"{_many(found.examined)} of them were examined"
    kinds = ", ".join(list(found.formats)[:3])
    return Reason(settings, f"{_many(found.count)} pictures ({kinds}); {part}.")


def _bad_files(case: _Case, place: _Place) -> Reason | None:
    bad, examined = len(case.statistics.bad), case.statistics.examined
    if not bad:
        return None
    return Reason(
        settings={"data.on_error": "skip"}, why=f"{bad} of {_many(examined)} examined files cannot be read: left out."
    )


def _flips(case: _Case, place: _Place) -> Reason:
    look, found = case.look, case.statistics
    key = "data.flips"
    if not look.flips_allowed:
        return Reason({key: False}, f"A mirrored picture of {found.name} means something else.")
    change = "Set true if a mirror image is as good."
    if case.native < 16:
        return Reason({key: False}, f"Pictures of {case.native} px are mostly signs or sprites. {change}")
    if look.two_toned >= STROKES:
        share = f"{look.two_toned:.0%} of the pixels are nearly black or white"
        return Reason({key: False}, f"{share}, as in writing and drawings. {change}")
    if found.channels == 1:
        why = f"All pictures are grey, and scans or writing must not be mirrored. {change}"
        return Reason({key: False}, why)
    why = (
        f"Colour pictures with only {look.two_toned:.0%} of nearly black or white pixels are taken for photos, whose "
        "mirror images are as good and double the data. Set false for writing, maps or anything with a left and right."
    )
    return Reason({key: True}, why)


def _shape(case: _Case, place: _Place) -> Reason | None:
    found = case.statistics.aspect
    if found is None or found.smallest == found.largest == 1:
        return None
    if case.padded:
        why = (
            f"Width by height goes from {found.smallest:.2g} to {found.largest:.2g}: a square crop would lose more "
            f"than half of {case.look.torn:.0%} of the pictures."
        )
        return Reason({"data.fit": "pad"}, why)
    why = f"A square crop loses {case.look.lost:.0%} of the median picture, less than padding would waste."
    return Reason({"data.fit": "crop"}, why)


def _resize(case: _Case, place: _Place) -> Reason | None:
    width, height = case.statistics.width, case.statistics.height
    if width is None or height is None:
        return None
    sides = {width.smallest, width.largest, height.smallest, height.largest}
    if sides == {float(place.side)}:
        return None
    if min(width.median, height.median) < place.side and not case.photos:
        return Reason({"data.resize": "nearest"}, "Enlarged pictures of few pixels keep their hard edges.")
    if place.side > 64:
        why = f"Pictures of about {width.median:g} x {height.median:g} px by bicubic, as published."
        return Reason({"data.resize": "published"}, why)
    why = (
        f"Pictures of about {width.median:g} x {height.median:g} px are averaged on their way to {place.side}; the "
        "published nearest neighbour would drop pixels."
    )
    return Reason({"data.resize": "adm"}, why)


def _background(case: _Case, place: _Place) -> Reason | None:
    look, found = case.look, case.statistics
    if case.background is None:
        return None
    what = " and ".join(
        part for part, here in ((f"{found.transparent} pictures are transparent", found.transparent > 0),
                                ("padding shows", case.padded)) if here
    )  # fmt: skip
    if look.one_border > ONE_BORDER:
        why = f"{look.one_border:.0%} of the pictures have this colour along their edges"
    elif case.padded and not found.transparent:
        why = "the median colour along the edges"
    else:
        why = f"what is drawn on them has a brightness of {look.brightness / 255:.0%}, so this sets it off"
    return Reason({"data.background": list(case.background)}, f"{what or 'transparency shows'}; {why}.")


def _loading(case: _Case, place: _Place) -> Reason | None:
    decoded = case.statistics.count * case.statistics.channels * place.side**2
    limit = LARGEST_CACHE if case.host is None else case.host // 2
    size = f"The decoded set takes {readable(decoded)}"
    if decoded <= limit:
        if decoded <= LARGEST_CACHE:
            return None
        why = f"{size} and {readable(limit * 2)} are free, so it is decoded once and kept."
        return Reason({"data.cache_mb": -(-decoded // (1 << 20))}, why)
    settings: dict[str, Any] = {}
    why = f"{size}, too much for the {readable(case.host or LARGEST_CACHE)} here, so it is decoded again and again"
    if decoded <= LARGEST_CACHE:
        settings["data.cache_mb"] = 0
    if case.device.type != "cpu":
        settings["data.workers"] = max(1, min(8, case.cores - 1))
        why += f", by {settings['data.workers']} of {case.cores} cores"
    if case.look.in_blocks and limit // 2 < case.statistics.encoded_bytes <= FULLY_HELD:
        settings["data.shuffle"] = "blocks"
        why += ", in blocks, of which a few are held at a time"
    return Reason(settings, f"{why}.") if settings else None


def _size(case: _Case, place: _Place) -> Reason:
    settings = {"model.image_size": place.side}
    suits = f"The pictures suit {case.native} px"
    if case.asked is not None:
        return Reason(settings, f"As you asked. {suits}.")
    if place.side == case.native:
        return Reason(settings, f"{suits}.")
    if place.side == _even(case.native):
        return Reason(settings, f"{suits}, lowered to a size that patches divide.")
    if place.limited:
        return Reason(settings, f"{suits}, but {place.stop}; {_allowance(case)}.")
    why = f"{suits}; the published models stop at {PUBLISHED_SIDE}, and a larger size must be asked for."
    return Reason(settings, why)


def _channels(case: _Case, place: _Place) -> Reason:
    found = case.statistics
    shown = _many(found.examined - len(found.bad))
    why = f"All {shown} examined pictures are grey."
    if found.channels == 3:
        why = f"{_many(found.grey) if found.grey else 'None'} of {shown} examined pictures are grey."
    return Reason({"model.image_channels": found.channels}, why)


def _classes(case: _Case, place: _Place) -> Reason:
    counts = case.statistics.class_counts
    key = "model.num_classes"
    if not counts:
        return Reason({key: 0}, "The pictures have no labels: an unconditional model.")
    if len(counts) == 1:
        return Reason({key: 0}, "All pictures are of one class, so there is nothing to tell apart.")
    if not case.classes:
        why = f"{_many(len(counts))} classes of {_many(case.statistics.count)} pictures are names, not kinds."
        return Reason({key: 0}, why)
    span = f"{min(counts)} each" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} each"
    return Reason({key: len(counts)}, f"The pictures are sorted into classes, {span}.")


def _network(case: _Case, place: _Place) -> Reason:
    settings: dict[str, Any] = {"model.patch_size": place.patch}
    for part in ("encoder", "decoder"):
        settings[f"model.{part}"] = place.rung.size or place.own[f"model.{part}"]
    for key in ("encoder_mixer_depth", "decoder_mixer_depth", "pixel_head", "decoder_input_init", "output_init"):
        if f"model.{key}" in place.own:
            settings[f"model.{key}"] = place.own[f"model.{key}"]
    grid = f"{place.grid} x {place.grid} tokens"
    whose = "published" if place.published and place.rung.size is None else "shipped"
    sized = f", with {place.rung.size} networks" if place.rung.size else ""
    why = f"The {whose} recipe {place.pattern.name}{sized}; a patch of {place.patch} px makes {grid}."
    if place.stop and not place.limited:
        why += f" No larger, for {place.stop}."
    return Reason(settings, why)


def _latent(case: _Case, place: _Place) -> Reason:
    numbers = case.statistics.channels * place.patch**2  # of a patch
    compression = place.own.get("model.compression")
    if compression is None:
        channels = max(1, round(numbers * 3 / 8))
        why = f"{place.grid**2} tokens of {channels}: 3/8 of the numbers of a picture, as in {place.pattern.name}."
        return Reason({"model.latent_channels": channels}, why)
    channels = max(1, int(numbers / compression))
    why = f"{place.grid**2} tokens of {channels}, as in {place.pattern.name}; 1.5 to 3 works best."
    return Reason({"model.compression": compression}, why)


def _angle(case: _Case, place: _Place) -> Reason:
    latent = next(iter(_latent(case, place).settings.items()))
    numbers = case.statistics.channels * place.patch**2
    channels = latent[1] if latent[0] == "model.latent_channels" else int(numbers / latent[1])
    size = place.grid**2 * channels
    angle = noise_angle(size)
    span = "so many leave room for strong noise" if angle >= 80 else "so few leave little empty space"
    why = (
        f"The latent has {_many(size)} numbers, and {span} (in the shipped recipes 24 take 53 degrees, 2048 take "
        "80, 8192 and more take 85)."
    )
    return Reason({"model.max_angle": angle}, why)


def noise_angle(numbers: int) -> float:
    """`model.max_angle` for a latent of so many numbers, in whole degrees from 45 to 85."""
    (a, low), (b, high) = ANGLES[:2] if numbers < ANGLES[1][0] else ANGLES[1:]
    angle = low + (high - low) * math.log(numbers / a) / math.log(b / a)
    return float(round(min(85.0, max(45.0, angle))))


def _activation(case: _Case, place: _Place) -> Reason:
    key, share = "model.output_activation", f"{case.saturated:.0%} of the pixels are pure black or white"
    if case.saturated > SATURATED:
        return Reason({key: "none"}, f"{share}, and tanh stops learning on large such areas.")
    if place.own.get(key) == "none":
        return Reason({key: "none"}, f"{share}; without tanh small models learn at once on any pictures.")
    return Reason({key: "tanh"}, f"Only {share}, so the published tanh serves.")


def _noise(case: _Case, place: _Place) -> Reason | None:
    settings = {key: value for key, value in place.own.items() if key.startswith("noise.")}
    return Reason(settings, f"As in {place.pattern.name}.") if settings else None


def _perceptual_kind(case: _Case, place: _Place) -> str:
    """`none` where no perceptual network can help."""
    return "auto" if case.photos and place.own.get("perceptual") != "none" else "none"


def _loss(case: _Case, place: _Place) -> Reason:
    settings = {key: value for key, value in place.own.items() if key.startswith("loss.")}
    why = f"The weights of {place.pattern.name}"
    if _perceptual_kind(case, place) == "none":
        settings |= {"loss.perceptual_reconstruction": 0, "loss.perceptual_consistency": 0}
        why += " without the perceptual terms"
    if not case.classes:
        settings.pop("loss.label_dropout", None)
    return Reason(settings, f"{why}.")


def _perceptual(case: _Case, place: _Place) -> Reason:
    if _perceptual_kind(case, place) == "none":
        what = f"{place.side} px" if place.side < 24 else "drawings or writing"
        why = f"The perceptual networks know photos, not {what}."
        return Reason({"perceptual": "none"}, why)
    here = {
        "builtin": "here it is the built-in network, for the weight files of the published ones are not found",
        "published": "here it is the published networks, whose weight files are found",
    }[_provider()]
    return Reason({"perceptual": "auto"}, f"Photos gain most from it; {here}.")


def _batch(case: _Case, place: _Place) -> Reason:
    batch, count = place.pattern.train.batch_size, case.statistics.count
    if count >= batch:
        return Reason({"train.batch_size": batch}, f"As in {place.pattern.name}.")
    smaller = min(batch, max(16, 1 << (count.bit_length() - 1)))
    return Reason({"train.batch_size": smaller}, f"There are only {count} pictures.")


def _optimizer(case: _Case, place: _Place) -> Reason:
    keys = [key for key in place.own if key.startswith("optimizer.") and "warmup" not in key]
    return Reason({key: place.own[key] for key in keys}, f"As in {place.pattern.name}.")


def _sampling(case: _Case, place: _Place) -> Reason:
    settings = {key: value for key, value in place.own.items() if key.startswith("sampling.")}
    if not case.classes:
        settings.pop("sampling.guidance", None)
    why = f"As in {place.pattern.name}; `spheregen sample` can override it."
    return Reason(settings or {"sampling.steps": 4}, why)


_Decision = Callable[[_Case, _Place], Reason | None]
_DECISIONS: tuple[_Decision, ...] = (
    _source, _bad_files, _flips, _shape, _resize, _background, _loading,
    _size, _channels, _classes, _network, _latent, _activation, _angle,
    _noise, _loss, _perceptual, _batch, _optimizer, _sampling,
)  # fmt: skip


# What depends on the place that was reached, on its memory and its speed.


def _memory_settings(case: _Case, place: _Place, fit: _Fit) -> Iterator[Reason]:
    batch = _batch(case, place).settings["train.batch_size"]
    if case.memory is None or (fit.micro_batch >= batch and not fit.recompute):
        return
    # a GPU puts the choice to the test, since estimates leave out what its driver takes
    settings: dict[str, Any] = {"train.micro_batch": fit.micro_batch if case.device.type == "cpu" else "auto"}
    why = f"About {fit.micro_batch} images at a time fit into the {readable(case.memory)} of memory that are available"
    if fit.recompute:
        settings["train.recompute"] = True
        why += ", if activations are computed twice"
    yield Reason(settings, f"{why}; gradients add up, so the result stays the same.")


def _length(case: _Case, place: _Place, batch: int, seconds: float) -> tuple[int, Reason]:
    """Steps of the run: what such data take, within the time."""
    count = case.statistics.count
    epochs = place.pattern.train.epochs or LAPTOP_EPOCHS[case.hours_given]
    wanted = max(epochs * count, place.rung.pictures) / batch
    possible = case.hours * 3600 / seconds
    steps = _round_down(min(wanted, possible))
    done = steps * batch / count
    takes = (
        f"{_many(steps * batch)} pictures, {_digits(done)} epochs of {_many(count)}: about "
        f"{_duration(steps * seconds / 3600)} on this {case.machine}, at {seconds:.2g} seconds a step"
    )
    if wanted > possible:
        why = f"{takes}; {_allowance(case)}."
    elif epochs * count < place.rung.pictures:
        why = f"{takes}; fewer than {_many(place.rung.pictures)} pictures teach too little, even of a small set."
    else:
        most = "the most that is suggested" if case.hours_given else "the default; --hours asks for more"
        why = f"{takes}; {_digits(epochs)} epochs are {most}."
    return steps, Reason({"train.steps": steps}, why)


def _rhythm(case: _Case, place: _Place, batch: int, steps: int, seconds: float) -> Iterator[Reason]:
    """What follows from the length of the run."""
    warmup = min(_pattern_warmup(case, place, batch), max(1, steps // 10))
    yield Reason({"optimizer.warmup_steps": warmup}, f"{warmup / steps:.1%} of the run.")
    average = max(1.0, steps / 10)
    ema = min(0.9997, round(1 - 1 / average, 4))
    yield Reason({"train.ema": ema}, "Averages over about a tenth of the run, 3000 steps at most.")
    ten_minutes = max(1, round(600 / seconds))
    every = _round_down(min(1000, ten_minutes, max(1, steps / 5)))
    yield Reason(
        settings={"train.checkpoint_every": every, "train.preview_every": _round_down(max(1, steps / 10))},
        why=f"An interruption costs {_duration(every * seconds / 3600)} at most; ten previews.",
    )


def _pattern_warmup(case: _Case, place: _Place, batch: int) -> int:
    optimizer = place.pattern.optimizer
    if optimizer.warmup_epochs is not None:
        return max(1, round(optimizer.warmup_epochs * case.statistics.count / batch))
    return optimizer.warmup_steps or 1


def _allowance(case: _Case) -> str:
    if case.hours_given:
        return f"you gave it {_duration(case.hours)}"
    return f"{_duration(case.hours)} are the limit on a {case.machine} unless you give more with --hours"


def _warnings(case: _Case, place: _Place, pictures: int) -> Iterator[str]:
    found = case.statistics
    if found.bad:
        yield f"{len(found.bad)} files cannot be read and are left out, such as {found.bad[0].reason}"
    if found.count < FEW_PICTURES:
        yield (
            f"{found.count} pictures are few: the model will repeat them more than invent new ones; add more pictures, "
            "or compare samples with their nearest neighbours"
        )
    if found.duplicates > MANY_COPIES * found.examined:
        yield f"{found.duplicates} of {found.examined} files are exact copies; spheregen stats names them"
    yield from _class_warnings(case)
    if pictures < found.count:
        yield (
            f"the time allows only {pictures / found.count:.2f} of an epoch; give more hours, or a smaller image size"
        )
    if pictures < place.rung.pictures / 2:
        yield (
            f"{place.title} sees {_many(pictures)} pictures and should see about {_many(place.rung.pictures)}: expect "
            "blurs; give more hours, a smaller image size, or a faster device"
        )
    if place.side > case.native:
        yield f"the pictures suit {case.native} px and are enlarged to {place.side}, which adds work and no detail"


def _class_warnings(case: _Case) -> Iterator[str]:
    found = case.statistics
    if not case.classes:
        if len(found.class_names) > 1:
            yield "there is about one picture a class, so the labels are not used; group them into fewer classes"
        return
    few = sorted((number, name) for name, number in zip(found.class_names, found.class_counts, strict=True))
    few = [(number, name) for number, name in few if number < FEW_OF_A_CLASS]
    if few:
        named = ", ".join(f"{name} ({number})" for number, name in few[:3])
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        yield f"classes with fewer than {FEW_OF_A_CLASS} pictures will look alike or be copies: {named}{more}"
    if found.balance is not None and found.balance < UNBALANCED:
        low, high = min(found.class_counts), max(found.class_counts)
        yield f"the classes are unbalanced ({low} to {high} pictures): small ones will be learnt late"


# Putting it together.


_SECTIONS = ("data", "model", "noise", "loss", "perceptual", "optimizer", "train", "sampling")
_FIRST = ("model.image_size", "train.steps")  # lead their sections


def _sorted(reasons: Sequence[Reason]) -> list[Reason]:
    """By section, as in the shipped recipes."""

    def place(reason: Reason) -> tuple[int, bool]:
        key = next(iter(reason.settings))
        return _SECTIONS.index(key.partition(".")[0]), key not in _FIRST

    return sorted(reasons, key=place)


def _build(case: _Case, place: _Place, reasons: Sequence[Reason]) -> Recipe:
    settings = {key: value for reason in reasons for key, value in reason.settings.items()}
    values = nested(settings)
    return build_recipe({"name": "suggested", "description": _description(case, place), **values}, "the suggestion")


def _description(case: _Case, place: _Place) -> str:
    kinds = f"{case.classes} classes" if case.classes else "unconditional"
    return f"{case.statistics.name} at {place.side} px, {kinds}; suggested for a {case.machine}."


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings as the sections of a recipe."""
    values: dict[str, Any] = {}
    for dotted, value in settings.items():
        section, dot, key = dotted.partition(".")
        if dot:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return values


def _round_down(number: float) -> int:
    """To two digits that count, 1 at least."""
    whole = max(1, int(number))
    unit = int(10 ** max(0, len(str(whole)) - 2))
    return whole // unit * unit


def _many(number: int) -> str:
    return f"{number:,}".replace(",", " ") if number >= 10_000 else str(number)


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _duration(hours: float) -> str:
    for unit, length, upto in (("seconds", 1 / 3600, 100), ("minutes", 1 / 60, 100), ("hours", 1.0, 72)):
        if hours / length < upto:
            return f"{_digits(hours / length)} {unit}"
    return f"{hours / 24:.0f} days"
