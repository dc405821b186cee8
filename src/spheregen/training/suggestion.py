"""A recipe fitted to a data set and a device, with the reason for each setting.

Of the models on the ladder it takes the largest that the pictures, the time and the memory carry, and of its pattern,
a shipped recipe, what does not hang on the data. What the data decide (flips, background, classes, output activation
...) comes from counts and from a look at a sample. Rules of thumb are named constants.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spheregen.data import SourceStatistics
from spheregen.data.look import Colour, Look, data_warnings, learnt_classes
from spheregen.devices import available_memory
from spheregen.errors import DataError
from spheregen.losses.perceptual import available_provider
from spheregen.training.fitting import readable
from spheregen.training.ladder import (
    SIDES,
    Clock,
    Means,
    Place,
    check_wishes,
    climb,
    divisible,
    duration,
    places_for,
    round_down,
    run_length,
)
from spheregen.training.recipe import AutoencoderRecipe, Recipe, build_recipe

PUBLISHED_SIDE = 256  # the published models are no larger, so larger ones must be asked for
SATURATED = 0.1  # share of pure black and white pixels from which tanh is not trusted
STROKES = 0.75  # share of nearly black or white pixels from which pictures are taken for drawings or writing
DEFAULT_CACHE = 2 << 30  # bytes that recipes keep in memory by default

# Latent numbers and the noise angle of three shipped recipes; between them the angle follows the logarithm.
ANGLES = ((24, 53.0), (2048, 80.0), (8192, 80.0), (65_536, 85.0))

_ORDER = ("data", "model", "noise", "loss", "perceptual", "optimizer", "train", "sampling")
"""Of the sections of a recipe that is written for people."""


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
        hours: how long it may take; None: `ladder.DEFAULT_HOURS`, and no more epochs than such data take.
        image_size: side in pixels, 4 to 1024; None: what pictures and device allow.
        clock: tells how long a step takes; None measures it on the device, in about ten seconds.

    Raises:
        ConfigError: hours or image_size is impossible, or not even the smallest model fits into memory.
        DataError: no picture can be read, or they are too small.
    """
    check_wishes(hours, image_size)
    case = _Case(
        source=source,
        statistics=statistics,
        look=look,
        classes=learnt_classes(statistics),
        native=_native_size(statistics, image_size),
        asked=image_size,
        means=Means.of(device, precision, hours),
    )
    clock = clock or Clock(device, precision)
    places = places_for(case.wanted, exactly=image_size is not None, labelled=case.classes > 0)
    place = climb(places, case.draft, clock, case.means, images=statistics.count)
    seconds = clock.measure(case.draft(place))
    batch = _batch_size(case, place)
    steps, why = run_length(place, case.means, images=statistics.count, batch=batch, seconds=seconds)
    reasons = [Reason({"train.steps": steps}, why), *_decisions(case, place), *_rhythm(case, place, steps, seconds)]
    reasons.sort(key=lambda reason: _ORDER.index(next(iter(reason.settings)).partition(".")[0]))
    return Suggestion(
        recipe=case.build(place, reasons),
        reasons=tuple(reasons),
        warnings=tuple(_warnings(case, place, steps * batch)),
        seconds_per_step=seconds,
        hours=steps * seconds / 3600,
        epochs=steps * batch / statistics.count,
    )


def noise_angle(numbers: int) -> float:
    """`model.max_angle` for a latent of so many numbers, in whole degrees from 45 to 85."""
    pairs = list(itertools.pairwise(ANGLES))
    (a, low), (b, high) = next((pair for pair in pairs if numbers < pair[1][0]), pairs[-1])
    angle = low + (high - low) * math.log(numbers / a) / math.log(b / a)
    return float(round(min(85.0, max(45.0, angle))))


@dataclass(frozen=True, kw_only=True)
class _Case:
    """The facts that decisions rest on."""

    source: str
    statistics: SourceStatistics
    look: Look
    classes: int  # that the model learns; 0 = unconditional
    native: int  # the image size that suits the pictures
    asked: int | None  # the image size that the user wants
    means: Means

    @property
    def wanted(self) -> int:
        """The image size, if the device allows it."""
        return self.asked or divisible(min(self.native, PUBLISHED_SIDE))

    @property
    def photos(self) -> bool:
        """False for writing, drawings in two tones and what is too small to tell."""
        return self.look.flips_allowed and self.native >= 16 and self.look.two_toned < STROKES

    @property
    def background(self) -> tuple[Colour, str] | None:
        """The colour behind padding and transparency, and why; None where neither shows."""
        return self.look.background(self.statistics.transparent)

    def build(self, place: Place, reasons: Iterable[Reason]) -> AutoencoderRecipe:
        kinds = f"{self.classes} classes" if self.classes else "unconditional"
        title = f"{self.statistics.name} at {place.side} px, {kinds}; suggested for a {self.means.machine}."
        values: dict[str, Any] = {"name": "suggested", "description": title}
        for reason in reasons:
            for dotted, value in reason.settings.items():
                section, dot, key = dotted.partition(".")
                if dot:
                    values.setdefault(section, {})[key] = value
                else:
                    values[section] = value
        recipe = build_recipe(values, "the suggestion")
        assert isinstance(recipe, AutoencoderRecipe)
        return recipe

    def draft(self, place: Place) -> Recipe:
        """The recipe of a place, of unknown length, for estimates: it names the perceptual loss that `auto` means."""
        recipe = self.build(place, [*_decisions(self, place), Reason({"train.steps": 1}, "")])
        return recipe.model_copy(update={"perceptual": available_provider()}) if recipe.perceptual == "auto" else recipe


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


# The decisions, in the order of a recipe.


def _decisions(case: _Case, place: Place) -> Iterator[Reason]:
    """All but what the length of the run decides."""
    found, name = case.statistics, place.pattern.name
    yield _source(case)
    yield _flips(case)
    yield from _shape(case, place.side)
    yield from _loading(case, place.side)
    yield _size(case, place)
    grey = "All" if found.channels == 1 else f"{found.grey:,}" if found.grey else "None"
    why = f"{grey} of {found.examined - len(found.bad):,} examined pictures are grey."
    yield Reason({"model.image_channels": found.channels}, why)
    yield _classes(case)
    yield _network(case, place)
    yield from _latent(case, place)
    yield _activation(case, place)
    if noise := place.section("noise"):
        yield Reason(noise, f"As in {name}.")
    yield from _losses(case, place)
    yield Reason(place.section("optimizer", "warmup_steps", "warmup_epochs"), f"As in {name}.")
    batch = _batch_size(case, place)
    why = f"As in {name}." if batch == place.pattern.train.batch_size else f"There are only {found.count} pictures."
    yield Reason({"train.batch_size": batch}, why)
    yield from _memory(case, place)
    sampling = place.section("sampling", *([] if case.classes else ["guidance"]))
    yield Reason(sampling, f"As in {name}; `spheregen sample` can override it.")


def _source(case: _Case) -> Reason:
    found, settings = case.statistics, {"data.source": case.source}
    if found.split != "train":
        settings["data.split"] = found.split
    part = "all were" if found.examined == found.count else f"{found.examined:,} of them were"
    why = f"{found.count:,} pictures ({', '.join(list(found.formats)[:3])}); {part} examined."
    if found.bad:
        settings["data.on_error"] = "skip"
        why += f" {len(found.bad)} cannot be read and are left out."
    return Reason(settings, why)


def _flips(case: _Case) -> Reason:
    look, found = case.look, case.statistics
    share = f"{look.two_toned:.0%} of the pixels are nearly black or white"
    change = "Set true if a mirror image is as good."
    if not look.flips_allowed:
        why = f"A mirrored picture of {found.name} means something else."
    elif case.native < 16:
        why = f"Pictures of {case.native} px are mostly signs or sprites. {change}"
    elif not case.photos:
        why = f"{share}, as in writing and drawings. {change}"
    elif found.channels == 1:
        why = f"All pictures are grey, and scans or writing must not be mirrored. {change}"
    else:
        why = (
            f"Only {share}, so these are taken for photos, whose mirror images are as good and double the data. Set "
            "false for writing, maps or anything with a left and right."
        )
    return Reason({"data.flips": case.photos and found.channels == 3}, why)


def _shape(case: _Case, side: int) -> Iterator[Reason]:
    look, found = case.look, case.statistics
    if look.padded:
        why = f"A square crop would lose more than half of {look.torn:.0%} of the pictures."
        yield Reason({"data.fit": "pad"}, why)
    elif look.lost:
        why = f"A square crop loses {look.lost:.0%} of the average picture, less than padding would waste."
        yield Reason({"data.fit": "crop"}, why)

    spreads = [spread for spread in (found.width, found.height) if spread]
    stored = f"Pictures of about {' x '.join(f'{spread.median:g}' for spread in spreads)} px"
    if any({spread.smallest, spread.largest} != {side} for spread in spreads):
        if min(spread.median for spread in spreads) < side and not case.photos:
            yield Reason({"data.resize": "nearest"}, "Enlarged pictures of few pixels keep their hard edges.")
        elif side > 64:
            yield Reason({"data.resize": "published"}, f"{stored} by bicubic, as published.")
        else:
            why = f"{stored} are averaged on their way to {side}; the published nearest neighbour would drop pixels."
            yield Reason({"data.resize": "adm"}, why)

    if case.background is not None:
        colour, why = case.background
        shows = "Padding shows" if look.padded else f"{found.transparent:,} pictures are transparent"
        yield Reason({"data.background": list(colour)}, f"{shows}; {why}.")


def _loading(case: _Case, side: int) -> Iterator[Reason]:
    free = available_memory(torch.device("cpu")) or 2 * DEFAULT_CACHE
    decoded = case.statistics.count * case.statistics.channels * side**2
    size = f"The decoded set takes {readable(decoded)}"
    if decoded > free // 2:
        settings = {"data.cache_mb": 0}
        why = f"{size}, too much to keep in memory here, so it is decoded again and again"
        if case.means.device.type != "cpu":
            cores = os.cpu_count() or 1
            settings["data.workers"] = max(1, min(8, cores - 1))
            why += f", by {settings['data.workers']} of {cores} cores"
        yield Reason(settings, f"{why}.")
    elif decoded > DEFAULT_CACHE:
        why = f"{size} and {readable(free)} are free, so it is decoded once and kept."
        yield Reason({"data.cache_mb": math.ceil(decoded / 2**20)}, why)


def _size(case: _Case, place: Place) -> Reason:
    why = f"The pictures suit {case.native} px"
    if case.asked is not None:
        why = f"As you asked. {why}"
    elif place.side < case.wanted:
        why += f", but {place.stop}"
    elif case.native > PUBLISHED_SIDE:
        why += f"; the published models stop at {PUBLISHED_SIDE}, and a larger size must be asked for"
    elif place.side < case.native:
        why += ", lowered to a size that patches divide"
    return Reason({"model.image_size": place.side}, f"{why}.")


def _classes(case: _Case) -> Reason:
    counts = case.statistics.class_counts
    if not counts:
        why = "The pictures have no labels: an unconditional model."
    elif len(counts) == 1:
        why = "All pictures are of one class, so there is nothing to tell apart."
    elif not case.classes:
        why = f"{len(counts):,} classes of {case.statistics.count:,} pictures are names, not kinds."
    else:
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        why = f"The pictures are sorted into classes, {span} each."
    return Reason({"model.num_classes": case.classes}, why)


def _network(case: _Case, place: Place) -> Reason:
    settings: dict[str, Any] = {"model.patch_size": place.patch}
    for part in ("encoder", "decoder"):
        settings[f"model.{part}"] = place.rung.size or place.written[f"model.{part}"]
    for key in ("encoder_mixer_depth", "decoder_mixer_depth", "pixel_head", "decoder_input_init", "output_init"):
        if f"model.{key}" in place.written:
            settings[f"model.{key}"] = place.written[f"model.{key}"]
    sized = f" with {place.rung.size} networks" if place.rung.size else ""
    why = f"As in {place.pattern.name}{sized}; a patch of {place.patch} px makes {place.grid} x {place.grid} tokens."
    if place.stop and place.side == case.wanted:  # else the image size tells
        why += f" No larger, for {place.stop}."
    return Reason(settings, why)


def _latent(case: _Case, place: Place) -> Iterator[Reason]:
    numbers = case.statistics.channels * place.patch**2  # of a patch
    compression = place.written.get("model.compression")
    if compression is None:
        channels = max(1, round(numbers * 3 / 8))
        why = f"{place.grid**2} tokens of {channels}: 3/8 of the numbers of a picture, as in {place.pattern.name}."
        yield Reason({"model.latent_channels": channels}, why)
    else:
        channels = int(numbers / compression)
        why = f"{place.grid**2} tokens of {channels}, as in {place.pattern.name}; 1.5 to 3 works best."
        yield Reason({"model.compression": compression}, why)
    size = place.grid**2 * channels
    angle = noise_angle(size)
    span = "so many leave room for strong noise" if angle >= 80 else "so few leave little empty space"
    known = "in the shipped recipes 24 take 53 degrees, 2048 to 8192 take 80, 65,536 and more take 85"
    yield Reason({"model.max_angle": angle}, f"The latent has {size:,} numbers, and {span} ({known}).")


def _activation(case: _Case, place: Place) -> Reason:
    saturated = case.look.saturated_on(case.background and case.background[0])
    share = f"{saturated:.0%} of the pixels are pure black or white"
    if saturated > SATURATED:
        return Reason({"model.output_activation": "none"}, f"{share}, and tanh stops learning on large such areas.")
    if place.written.get("model.output_activation") == "none":
        why = f"{share}; without tanh small models learn at once on any pictures."
        return Reason({"model.output_activation": "none"}, why)
    return Reason({"model.output_activation": "tanh"}, f"Only {share}, so the published tanh serves.")


def _losses(case: _Case, place: Place) -> Iterator[Reason]:
    weights = place.section("loss", *([] if case.classes else ["label_dropout"]))
    why = f"The weights of {place.pattern.name}"
    if case.photos and place.pattern.perceptual != "none":
        yield Reason(weights, f"{why}.")
        networks = "the built-in network, for the weight files of the published ones are not found"
        if available_provider() == "published":
            networks = "the published networks, whose weight files are found"
        yield Reason({"perceptual": "auto"}, f"Photos gain most from it; here it is {networks}.")
    else:
        weights |= {"loss.perceptual_reconstruction": 0, "loss.perceptual_consistency": 0}
        yield Reason(weights, f"{why} without the perceptual terms.")
        what = f"{place.side} px" if place.side < 24 else "drawings or writing"
        yield Reason({"perceptual": "none"}, f"The perceptual networks know photos, not {what}.")


def _batch_size(case: _Case, place: Place) -> int:
    """That of the pattern; of a smaller set, the largest power of two in it, 16 at least."""
    return min(place.pattern.train.batch_size, max(16, 1 << (case.statistics.count.bit_length() - 1)))


def _memory(case: _Case, place: Place) -> Iterator[Reason]:
    if place.micro_batch is None:
        return
    # a GPU puts the choice to the test, since estimates leave out what its driver takes
    auto = case.means.device.type != "cpu"
    settings: dict[str, Any] = {"train.micro_batch": "auto" if auto else place.micro_batch}
    here = readable(case.means.memory or 0)
    why = f"About {place.micro_batch} images at a time fit into the {here} of memory that are available"
    if place.recompute:
        settings["train.recompute"] = True
        why += ", if activations are computed twice"
    yield Reason(settings, f"{why}; gradients add up, so the result stays the same.")


def _rhythm(case: _Case, place: Place, steps: int, seconds: float) -> Iterator[Reason]:
    """What follows from the length of the run."""
    warmup = min(place.pattern.warmup_steps(case.statistics.count), max(1, steps // 10))
    yield Reason({"optimizer.warmup_steps": warmup}, f"{warmup / steps:.1%} of the run.")
    ema = min(0.9997, round(1 - 1 / max(1.0, steps / 10), 4))
    yield Reason({"train.ema": ema}, "Averages over about a tenth of the run, 3000 steps at most.")
    every = round_down(min(1000, round(600 / seconds), steps / 5))
    yield Reason(
        settings={"train.checkpoint_every": every, "train.preview_every": round_down(steps / 10)},
        why=f"An interruption costs {duration(every * seconds / 3600)} at most; ten previews.",
    )


def _warnings(case: _Case, place: Place, pictures: int) -> Iterator[str]:
    """For a run that shows so many pictures, repeats counted."""
    found, needed = case.statistics, place.rung.pictures
    yield from data_warnings(found)
    if pictures < found.count:
        yield f"the time allows only {pictures / found.count:.2f} of an epoch; give more hours, or a smaller image size"
    if pictures < needed / 2:
        yield (
            f"{place.title} sees {pictures:,} pictures and should see about {needed:,}: expect blurs; give more hours, "
            "a smaller image size, or a faster device"
        )
    if place.side > case.native:
        yield f"the pictures suit {case.native} px and are enlarged to {place.side}, which adds work and no detail"
