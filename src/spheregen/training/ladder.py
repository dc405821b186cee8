"""The ladder of models, and how far the data, the time and the memory carry a run up it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from spheregen.devices import available_memory
from spheregen.errors import ConfigError
from spheregen.evaluation.peak import matmul_peak
from spheregen.training.fitting import SAFE_SHARE, largest_micro_batch, readable
from spheregen.training.memory import estimate_memory
from spheregen.training.recipe import AutoencoderRecipe, Recipe, load_recipe, shipped_recipes
from spheregen.training.timing import estimate_time, flops_per_image

DEFAULT_HOURS: Mapping[str, float] = {"cpu": 3.0, "cuda": 24.0, "mps": 6.0}
"""How long a run may take, by device, where nobody says."""
SIDES = (4, 1024)
"""The image sizes in pixels for which there is a model."""
LAPTOP_EPOCHS = (300, 1000)  # of models without a published length: by default, and the most if hours are given
EFFICIENCY = 0.4  # of a training step against square matrix products: small models 0.2 to 0.6, large ones 0.8 on a CPU
LEAST_PASS = 8  # images; where fewer fit, blocks are computed twice instead


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A model on the ladder."""

    name: str
    like: str  # the shipped recipe whose settings it takes
    unlabelled: str | None = None  # the one for pictures without classes, if it is another
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
    Rung(name="small", like="flowers102", unlabelled="animal-faces", sides=(56, 1024), grid=16, size="small",
         pictures=2_000_000, images=500),
    Rung(name="base", like="cifar10", sides=(24, 55), grid=16, pictures=10_000_000, images=5000),
    Rung(name="base", like="flowers102", unlabelled="animal-faces", sides=(56, 1024), grid=32, size="base",
         pictures=3_000_000, images=5000),
    Rung(name="large", like="flowers102", unlabelled="animal-faces", sides=(96, 1024), grid=32, pictures=5_000_000,
         images=5000),
    Rung(name="large", like="imagenet-l", sides=(192, 1024), grid=32, pictures=20_000_000, images=500_000),
)  # fmt: skip
"""From the smallest up. Of each data set those count whose image size does not fall below that of the one before."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a run may use."""

    device: torch.device
    precision: str  # see `devices.choose_precision`
    hours: float
    given: bool  # the user said how many hours
    memory: int | None  # bytes available on the device; None where it does not tell

    @classmethod
    def of(cls, device: torch.device, precision: str, hours: float | None) -> Means:
        """Those of this machine, and the default hours where none are given."""
        limit = hours or DEFAULT_HOURS.get(device.type, DEFAULT_HOURS["cpu"])
        given, memory = hours is not None, available_memory(device)
        return cls(device=device, precision=precision, hours=limit, given=given, memory=memory)

    @property
    def machine(self) -> str:
        return "CPU" if self.device.type == "cpu" else "GPU"

    @property
    def allowance(self) -> str:
        """The hours in words."""
        time = duration(self.hours)
        return f"the {time} that you gave" if self.given else f"the {time} that a {self.machine} gets without --hours"


class Clock:
    """How long a training step takes on a device of this machine."""

    def __init__(self, device: torch.device, precision: str) -> None:
        self._device, self._precision = device, precision

    def guess(self, recipe: Recipe) -> float:
        """Seconds of a step by counting operations, at no cost but that of the first call."""
        return recipe.train.batch_size * flops_per_image(recipe) / (EFFICIENCY * self._peak)

    def measure(self, recipe: Recipe) -> float:
        """Seconds of a step by trying, for about five seconds."""
        flops_per_image(recipe)  # the first call in a process loads parts of torch; that is no time of a step
        return estimate_time(recipe, None, self._device, self._precision, budget=5.0).seconds_per_step

    @functools.cached_property
    def _peak(self) -> float:
        return float(matmul_peak(self._device, self._precision))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rung for given pictures."""

    rung: Rung
    side: int  # pixels
    patch: int  # pixels
    pattern: AutoencoderRecipe  # the shipped recipe
    written: Mapping[str, Any]  # what the recipe's file sets, by dotted key; the size of a network stays one value

    # for the place that a run reached
    stop: str = ""  # what keeps it from the next rung; empty on the highest
    micro_batch: int | None = None  # images that fit into memory; None for the whole batch
    recompute: bool = False  # blocks are computed twice, to fit

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.side // self.patch

    @property
    def title(self) -> str:
        return f"the {self.rung.name} model at {self.side} px"

    def section(self, name: str, *without: str) -> dict[str, Any]:
        """What the recipe's file sets in a section, by dotted key."""
        left_out = {f"{name}.{key}" for key in without}
        return {k: value for k, value in self.written.items() if k.startswith(f"{name}.") and k not in left_out}


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
            f"px on, of 4 below, such as {divisible(image_size)}"
        )


def divisible(side: int) -> int:
    """The side, lowered to a number that patches divide."""
    unit = 8 if side >= 32 else 4 if side >= 8 else 2
    return side // unit * unit


def places_for(wanted: int, *, exactly: bool, labelled: bool) -> list[Place]:
    """The rungs for some pictures, from the smallest model up; the image size never falls.

    Args:
        wanted: the image size in pixels.
        exactly: no smaller one will do.
        labelled: the model learns classes.
    """
    places: list[Place] = []
    for rung in LADDER:
        side = _side(rung, wanted, exactly=exactly)
        patch = _patch(side, rung.grid) if side else None
        if side is None or patch is None or (places and side < places[-1].side):
            continue
        pattern, written = _pattern(rung.like if labelled else rung.unlabelled or rung.like)
        places.append(Place(rung=rung, side=side, patch=patch, pattern=pattern, written=written))
    return places


def climb(
    places: Sequence[Place], draft: Callable[[Place], Recipe], clock: Clock, means: Means, *, images: int
) -> Place:
    """The highest place that the data, the time and the memory reach.

    Args:
        places: from `places_for`.
        draft: the recipe of a place.
        images: in the data set.

    Raises:
        ConfigError: not even the lowest fits into memory.
    """
    reached, stop = [places[0]], ""
    for place in places[1:]:
        needed = place.rung.pictures
        if images < place.rung.images:
            stop = f"{place.title} asks for at least {place.rung.images:,} different pictures"
            break
        recipe = draft(place)
        hours = needed / recipe.train.batch_size * clock.guess(recipe) / 3600
        if hours > means.hours:
            stop = f"{place.title} takes {duration(hours)} to see {needed:,} pictures, more than {means.allowance}"
            break
        reached.append(place)
    here = readable(means.memory or 0)
    for place in reversed(reached):
        fitting = _fitting(place, draft(place), means, images)
        if fitting is not None:
            return dataclasses.replace(fitting, stop=stop)
        stop = f"{place.title} does not fit into the {here} of memory that are available"
    raise ConfigError(
        f"not even {places[0].title} fits: {here} of memory are available on {means.device.type}; free some, or use "
        "another device"
    )


def run_length(place: Place, means: Means, *, images: int, batch: int, seconds: float) -> tuple[int, str]:
    """The steps that a run on such data takes, within the time, and the reason.

    Args:
        images: in the data set.
        batch: images of a step.
        seconds: of a step.
    """
    epochs, needed = place.pattern.train.epochs or LAPTOP_EPOCHS[means.given], place.rung.pictures
    wanted = max(epochs * images, needed) / batch
    possible = means.hours * 3600 / seconds
    steps = round_down(min(wanted, possible))
    if wanted > possible:
        why = f"within {means.allowance}"
    elif epochs * images < needed:
        why = f"fewer than {needed:,} pictures teach too little, even of a small set"
    else:
        why = f"{epochs:g} epochs are {'the most that is suggested' if means.given else 'the default without --hours'}"
    done = steps * batch / images
    shown = f"{steps * batch:,} pictures, {done:.{0 if done >= 10 else 1}f} epochs of {images:,}"
    takes = f"{duration(steps * seconds / 3600)} on this {means.machine}, at {seconds:.2g} seconds a step"
    return steps, f"{shown}: about {takes}; {why}."


def round_down(number: float) -> int:
    """To two digits that count, 1 at least."""
    whole = max(1, int(number))
    unit = int(10 ** max(0, len(str(whole)) - 2))
    return whole // unit * unit


def duration(hours: float) -> str:
    """For people: `40 minutes`, `2.5 hours`, `9 days`."""
    value, unit = hours / 24, "days"
    if hours < 72:
        value, unit = hours, "hours"
    if hours < 100 / 60:
        value, unit = hours * 60, "minutes"
    if hours < 100 / 3600:
        value, unit = hours * 3600, "seconds"
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def _side(rung: Rung, wanted: int, *, exactly: bool) -> int | None:
    """The image size of a rung for pictures that allow the wanted one; None where it has none."""
    least, most = rung.sides
    if least <= wanted <= most:
        return wanted
    if exactly or wanted < least or most < 16:  # 8 px are for pictures of 8 px
        return None
    return 1 << (most.bit_length() - 1)


def _patch(side: int, grid: int) -> int | None:
    """The divisor that makes about so many tokens a side; None if it is off by more than 2."""
    off, patch = min((abs(math.log(side / patch / grid)), -patch) for patch in range(1, side) if side % patch == 0)
    return -patch if off <= math.log(2) + 1e-9 else None


@functools.cache
def _pattern(name: str) -> tuple[AutoencoderRecipe, Mapping[str, Any]]:
    """A shipped recipe, and what its file sets by dotted key."""
    recipe = load_recipe(name)
    assert isinstance(recipe, AutoencoderRecipe)
    values = recipe.model_dump(mode="json")  # as their own types: YAML takes 1e-4 for text
    return recipe, {
        f"{section}.{key}": value if isinstance(value, dict) else values[section][key]
        for section, settings in yaml.safe_load(shipped_recipes()[name]).items()
        if isinstance(settings, dict)
        for key, value in settings.items()
    }


def _fitting(place: Place, recipe: Recipe, means: Means, images: int) -> Place | None:
    """The place with what makes a run fit into memory; None if nothing does."""
    if means.memory is None:
        return place
    available, kind, batch = means.memory, means.device.type, recipe.train.batch_size
    decoded = images * recipe.model.image_channels * recipe.model.image_size**2
    if kind == "cpu" and decoded <= recipe.data.cache_mb << 20:  # the set is kept in the same memory
        available = max(0, available - decoded)
    found: list[tuple[int, bool]] = []
    for recompute in (False, True):
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"recompute": recompute})})
        count = largest_micro_batch(changed, precision=means.precision, device_type=kind, available=available)
        if count == 1:  # which it also is where nothing fits
            least = estimate_memory(changed, precision=means.precision, device_type=kind, micro_batch=1)
            if least.total > SAFE_SHARE * available:
                continue
        found.append((count, recompute))
        if count >= LEAST_PASS:
            break
    if not found:
        return None
    count, recompute = max(found, key=lambda fit: fit[0])
    whole = count >= batch and not recompute
    return dataclasses.replace(place, micro_batch=None if whole else count, recompute=recompute)
