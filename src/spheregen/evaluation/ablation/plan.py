"""The plan of a study: which combinations there are, and which trainings they need, all validated beforehand."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from spheregen.errors import ConfigError, did_you_mean
from spheregen.evaluation.ablation.axes import ALIASES, Axis, parse_axes, resolve_setting
from spheregen.evaluation.cost import count_parameters
from spheregen.models.autoencoder import AutoencoderConfig
from spheregen.pipeline import GenerationOptions
from spheregen.sampling.schedules import refinement_radii
from spheregen.training.recipe import FREE_TO_CHANGE, Recipe, RepresentationRecipe, flatten, load_recipe
from spheregen.training.settings import DataConfig, OptimizerConfig, SamplingConfig, TrainConfig
from spheregen.training.systems import stand_in_system
from spheregen.training.timing import flops_per_image
from spheregen.training.tracing import OnMeta

LARGEST = 200
"""Combinations, and trainings, of one study."""
_LONGEST_NAME = 80  # characters of a run folder, the digest apart
_DIGEST = 8  # hexadecimal digits


@dataclass(frozen=True)
class Training:
    """One model to train."""

    recipe: Recipe
    label: str
    """What of it the study varies, for people; empty where that is sampling alone."""
    digest: str
    """Of all settings that decide the weights: equal digests are the same training, in any study."""

    @property
    def name(self) -> str:
        """Of its run folder: readable, and of its own."""
        words = re.sub(r"[^A-Za-z0-9.+]+", "-", self.label.replace("sampling.", "")).strip("-.")
        return f"{words[:_LONGEST_NAME].rstrip('-.') or self.recipe.name}-{self.digest}"

    @functools.cached_property
    def parameters(self) -> int:
        """Of what is trained."""
        return _parameters(_as_for_cost(self.recipe))

    @functools.cached_property
    def flops_per_image(self) -> float:
        """Of a training step, as the trainer counts them."""
        return _flops(_as_for_cost(self.recipe))

    def pflops(self, images: int) -> float:
        """The work of the whole training on a data set of `images`, in 10^15 operations."""
        return self.flops_per_image * self.recipe.train.batch_size * self.recipe.total_steps(images) / 1e15


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One row of the table: a value for each key, a recipe, and a training for each seed."""

    values: Mapping[str, Any]
    """Plain values by the keys of the study."""
    texts: Mapping[str, str]
    """The same for people."""
    recipe: Recipe
    trainings: tuple[Training, ...]
    varies: str | None = None
    """One key at a time: the key; None for the recipe's own values, and in a grid."""

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(f"{key}={text}" for key, text in self.texts.items())

    @property
    def generation(self) -> GenerationOptions:
        """How its model is sampled. Without classes there is no guidance, whatever the recipe says."""
        settings = self.recipe.sampling.model_dump()
        return GenerationOptions(**settings | ({} if self.recipe.model.num_classes else {"guidance": 1.0}))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole study."""

    base: Recipe
    """The recipe with what `--set` changes."""
    axes: tuple[Axis, ...]
    combinations: tuple[Combination, ...]
    one_by_one: bool
    seeds: int

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Each once, in the order of the combinations."""
        found = {each.digest: each for combination in self.combinations for each in combination.trainings}
        return tuple(found.values())

    def of(self, training: Training) -> list[Combination]:
        """The combinations that sample this model."""
        digest = training.digest
        return [one for one in self.combinations if any(each.digest == digest for each in one.trainings)]


def make_plan(
    recipe: str,
    over: Sequence[str],
    *,
    settings: Sequence[str] = (),
    data: str | None = None,
    one_by_one: bool = False,
    seeds: int = 1,
) -> Plan:
    """Plan a study: every combination becomes a recipe, and every recipe is checked.

    Args:
        recipe: a shipped recipe or a YAML file.
        over: `KEY=V1,V2,...`, see `parse_axes`.
        settings: `key=value` for all combinations.
        data: becomes `data.source`.
        one_by_one: vary one key at a time around the recipe's own values, instead of the full grid.
        seeds: trainings of each combination, with `train.seed`, `train.seed` + 1, ...

    Raises:
        ConfigError: bad `over`, too many combinations, or one that is impossible, which is named.
    """
    axes = parse_axes(over)
    if seeds < 1:
        raise ConfigError(f"--seeds is at least 1 training of each combination, not {seeds}")
    if seeds > 1 and any("train.seed" in axis.settings for axis in axes):
        raise ConfigError("--over train.seed and --seeds set the same thing; leave one of them out")
    count = sum(len(axis.texts) for axis in axes) if one_by_one else math.prod(len(axis.texts) for axis in axes)
    if count > LARGEST:
        advice = "vary fewer values" if one_by_one else "vary fewer values, or one key at a time with --one-by-one"
        raise ConfigError(f"{count} combinations are too many for a study (at most {LARGEST}); {advice}")
    common = [resolved for text in settings for resolved in resolve_setting(text)]
    base = load_recipe(recipe, common, data=data)

    def build(chosen: Mapping[str, str]) -> Combination:
        return _combination(recipe, common, data, axes, chosen, seeds)

    if one_by_one:
        own = build({})
        made = (dataclasses.replace(build({axis.key: text}), varies=axis.key) for axis in axes for text in axis.texts)
        combinations = [own, *(one for one in made if not _same(one, own))]
    else:
        grid = itertools.product(*(axis.texts for axis in axes))
        combinations = [build(dict(zip((axis.key for axis in axes), texts, strict=True))) for texts in grid]
    _refuse_equal(combinations)
    plan = Plan(base=base, axes=axes, combinations=tuple(combinations), one_by_one=one_by_one, seeds=seeds)
    if len(plan.trainings) > LARGEST:
        raise ConfigError(f"{len(plan.trainings)} trainings are too many (at most {LARGEST}); lower --seeds")
    for combination in combinations:
        try:
            _check(combination)
        except ConfigError as error:
            raise ConfigError(f"{combination.label}: {error}") from error
    return plan


def _combination(
    recipe: str,
    common: Sequence[str],
    data: str | None,
    axes: Sequence[Axis],
    chosen: Mapping[str, str],
    seeds: int,
) -> Combination:
    """The combination of the chosen texts by key; keys that are not chosen keep the recipe's own values."""
    overrides = [each for axis in axes if axis.key in chosen for each in axis.overrides(chosen[axis.key])]
    label = ", ".join(f"{key}={text}" for key, text in chosen.items())
    try:
        built = load_recipe(recipe, [*common, *overrides], data=data)
    except ConfigError as error:
        raise ConfigError(f"--over {label}: {_without_set(str(error))}{_alias_hint(str(error), chosen)}") from error
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for axis in axes:
        own = [_lookup(built, setting) for setting in axis.settings]
        values[axis.key] = own[0] if all(each == own[0] for each in own) else " / ".join(map(_told, own))
        if axis.key in chosen and isinstance(values[axis.key], Mapping):
            values[axis.key] = yaml.safe_load(chosen[axis.key])  # without the defaults of what was written
        texts[axis.key] = _told(values[axis.key])
    trained = {axis.key: texts[axis.key] for axis in axes if axis.key in chosen and not axis.of_sampling}
    trainings = tuple(_training(built, trained, number, seeds) for number in range(seeds))
    return Combination(values=values, texts=texts, recipe=built, trainings=trainings)


def _training(recipe: Recipe, trained: Mapping[str, str], number: int, seeds: int) -> Training:
    seed = recipe.train.seed + number
    own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
    parts = [f"{key.rpartition('.')[2]} {text}" for key, text in trained.items()]
    if seeds > 1:
        parts.append(f"seed {seed}")
    return Training(own, ", ".join(parts), _digest(own))


def _digest(recipe: Recipe) -> str:
    """Of what decides the weights. Defaults are left out, so a setting that a later version adds changes nothing."""
    settings = flatten(recipe.model_dump(mode="json", exclude_defaults=True))
    decisive = {key: value for key, value in settings.items() if key not in FREE_TO_CHANGE or key == "data.source"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:_DIGEST]


def _same(a: Combination, b: Combination) -> bool:
    return a.trainings[0].digest == b.trainings[0].digest and a.generation == b.generation


def _refuse_equal(combinations: Sequence[Combination]) -> None:
    """Two rows of the same settings would look like a finding."""
    seen: dict[Any, str] = {}
    for one in combinations:
        key = (one.trainings[0].digest, one.generation)
        if key in seen:
            raise ConfigError(f"{seen[key]} and {one.label} come to the same settings; leave one of them out")
        seen[key] = one.label


def _check(combination: Combination) -> None:
    """Refuse what the recipe's own validation does not see."""
    recipe, generation = combination.recipe, combination.generation
    if isinstance(recipe, RepresentationRecipe):
        raise ConfigError(f"the recipe {recipe.name} trains a tokenizer, which has no samples to score")
    if recipe.data.source is None:
        raise ConfigError(f"the recipe {recipe.name} brings no data: name some (see `spheregen train`) with --data")
    refinement_radii(recipe.sampling.schedule, recipe.sampling.steps)
    if "sampling.guidance" in combination.texts and recipe.sampling.guidance != generation.guidance:
        raise ConfigError("a model without classes has no guidance; leave --over sampling.guidance out")
    assert combination.trainings[0].flops_per_image > 0  # builds networks and loss, without memory


def _lookup(recipe: Recipe, setting: str) -> Any:
    """The plain value of a dotted key."""
    value: Any = recipe.model_dump(mode="json")
    for part in setting.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _told(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_told(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_told, value)) + "]"
    return str(value)


def _without_set(message: str) -> str:
    """The recipe's own errors name overrides as `--set a.b=c: reason`, which nobody wrote here."""
    return re.sub(r"^--set .*?: ", "", message)


def _alias_hint(message: str, chosen: Mapping[str, str]) -> str:
    """The paper's name that may have been meant, where the recipe knows no better."""
    if "unknown key" not in message or "did you mean" in message:
        return ""
    return next(filter(None, (did_you_mean(key, ALIASES) for key in chosen)), "")


def _as_for_cost(recipe: Recipe) -> Recipe:
    """One recipe for all whose steps cost the same, so that others need no second look."""
    model = recipe.model
    if hasattr(model, "max_angle"):
        model = dataclasses.replace(model, max_angle=AutoencoderConfig.max_angle)
    return recipe.model_copy(
        update={
            "name": "",
            "description": "",
            "init": None,
            "data": DataConfig(),
            "model": model,
            "optimizer": OptimizerConfig(),
            "train": TrainConfig(steps=1),
            "sampling": SamplingConfig(),
        }
    )


@functools.cache
def _flops(recipe: Recipe) -> float:
    return flops_per_image(recipe)


@functools.cache
def _parameters(recipe: Recipe) -> int:
    with OnMeta():
        return count_parameters(stand_in_system(recipe).model)
