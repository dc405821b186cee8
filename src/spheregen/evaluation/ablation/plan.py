"""The plan of a study: which combinations `--over KEY=V1,V2` asks for, and which trainings they need, all validated."""

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
from types import MappingProxyType
from typing import Any

from spheregen.errors import ConfigError, did_you_mean
from spheregen.family.recipe import DataConfig, OptimizerConfig, Recipe, SamplingConfig, TrainConfig
from spheregen.family.registry import member_of_kind
from spheregen.files import read_yaml
from spheregen.measure.cost import count_parameters
from spheregen.pipeline import GenerationOptions
from spheregen.sampling.schedules import generation_angles
from spheregen.training.estimate import objective_on_meta, step_cost
from spheregen.training.recipe import flatten, load_recipe

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noise.alpha_max": ("model.max_angle",),
        "model.c": ("model.compression",),
        "model.mixer_depth": ("model.encoder_mixer_depth", "model.decoder_mixer_depth"),
        "loss.w1": ("loss.pixel_reconstruction",),
        "loss.w2": ("loss.perceptual_reconstruction",),
        "loss.w3": ("loss.pixel_consistency",),
        "loss.w4": ("loss.perceptual_consistency",),
        "loss.w5": ("loss.latent_consistency",),
    }
)
"""The paper's names of settings, and the keys of a recipe that they stand for."""
LARGEST = 200
"""Combinations, and trainings, of one study."""
_EXAMPLE = "for example --over noise.alpha_max=60,70,80"


@dataclass(frozen=True)
class Axis:
    """One key and the values that it takes."""

    key: str
    """As the user wrote it."""
    settings: tuple[str, ...]
    """The keys of the recipe that take the value; more than one for some of the paper's names."""
    texts: tuple[str, ...]
    """The values, each as JSON."""

    @property
    def of_sampling(self) -> bool:
        """True where it changes sampling alone, so that its values share one trained model."""
        return all(setting.startswith("sampling.") for setting in self.settings)


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
        """The name of its run folder: readable, and of its own."""
        words = re.sub(r"[^A-Za-z0-9.+]+", "-", self.label.replace("sampling.", "")).strip("-.")
        return f"{words[:80].rstrip('-.') or self.recipe.name}-{self.digest}"

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return _work(_as_for_cost(self.recipe))[0]

    def pflops(self, images: int) -> float:
        """Return the work of the whole training on a data set of `images`, in 10^15 operations."""
        each = _work(_as_for_cost(self.recipe))[1]
        return each * self.recipe.train.batch_size * self.recipe.total_steps(images) / 1e15


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
        """The values for people."""
        return ", ".join(f"{key}={text}" for key, text in self.texts.items())

    @property
    def generation(self) -> GenerationOptions:
        """How its model is sampled. Without classes there is no guidance, whatever the recipe says."""
        settings = self.recipe.sampling.model_dump()
        unguided = type(self.recipe.sampling)().guidance
        return GenerationOptions(**settings | ({} if self.recipe.model.label_width else {"guidance": unguided}))


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
        """Return the combinations that sample this model."""
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
    counts = [len(axis.texts) for axis in axes]
    limit = (
        f"are too many for a study (at most {LARGEST}): vary fewer values, or one key at a time with --one-by-one, or "
        "lower --seeds"
    )
    if (count := sum(counts) if one_by_one else math.prod(counts)) > LARGEST:
        raise ConfigError(f"{count} combinations {limit}")
    common = []
    for text in settings:
        key, equals, value = text.partition("=")
        common += [f"{setting}{equals}{value}" for setting in ALIASES.get(key.strip(), (key,))]
    base = load_recipe(recipe, common, data=data)
    build = functools.partial(_combination, recipe, common, data, axes, seeds)
    if one_by_one:
        own = build({})
        made = [dataclasses.replace(build({axis.key: text}), varies=axis.key) for axis in axes for text in axis.texts]
        combinations = [own, *(one for one in made if _identity(one) != _identity(own))]
    else:
        grid = itertools.product(*(axis.texts for axis in axes))
        combinations = [build({axis.key: text for axis, text in zip(axes, texts, strict=True)}) for texts in grid]
    seen: dict[Any, str] = {}
    for one in combinations:  # two rows of the same settings would look like a finding
        if _identity(one) in seen:
            told = f"{seen[_identity(one)]} and {one.label}"
            raise ConfigError(f"{told} come to the same settings; leave one of them out")
        seen[_identity(one)] = one.label
    for one in combinations:
        try:
            _check(one)
        except ConfigError as error:
            raise ConfigError(f"{one.label}: {error}") from error
    plan = Plan(base=base, axes=axes, combinations=tuple(combinations), one_by_one=one_by_one, seeds=seeds)
    if len(plan.trainings) > LARGEST:
        raise ConfigError(f"{len(plan.trainings)} trainings {limit}")
    return plan


def parse_axes(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Read all `--over` of a command: `KEY=V1,V2` with values in YAML, so brackets and quotes hold commas.

    Raises:
        ConfigError: none at all, one that is not `KEY=V1,V2`, or two that set the same thing.
    """
    if not texts:
        raise ConfigError(f"a study varies something: give at least one --over, {_EXAMPLE}")
    axes: list[Axis] = []
    for text in texts:
        key, _, listed = (part.strip() for part in text.partition("="))
        try:
            values = read_yaml(f"[{listed}]", "--over")
        except ConfigError:
            values = None
        if not key or not values or None in values:
            raise ConfigError(f"--over takes KEY=VALUE,VALUE,... with values in YAML, {_EXAMPLE}, not {text!r}")
        settings = ALIASES.get(key, (key,))
        # the path of the data may change when a run continues, but other data are another model
        if set(settings) & (Recipe.free_to_change - {"data.source"}):
            raise ConfigError(f"--over {key}: this setting does not change the model: there is nothing to compare")
        for other, ours, theirs in ((o, x, y) for o in axes for x in settings for y in o.settings):
            if f"{theirs}.".startswith(f"{ours}.") or f"{ours}.".startswith(f"{theirs}."):
                raise ConfigError(f"--over {other.key} and --over {key} set the same thing, or it is given twice")
        axes.append(Axis(key, settings, tuple(json.dumps(value, default=str) for value in values)))
    return tuple(axes)


def _combination(
    recipe: str, common: Sequence[str], data: str | None, axes: Sequence[Axis], seeds: int, chosen: Mapping[str, str]
) -> Combination:
    """The combination of the chosen texts by key; keys that are not chosen keep the recipe's own values."""
    varied = [axis for axis in axes if axis.key in chosen]
    overrides = [f"{setting}={chosen[axis.key]}" for axis in varied for setting in axis.settings]
    try:
        built = load_recipe(recipe, [*common, *overrides], data=data)
    except ConfigError as error:
        label = ", ".join(f"{key}={told(json.loads(text))}" for key, text in chosen.items())
        reason = re.sub(r"^--set .*?: ", "", str(error))  # which nobody wrote here
        hints = [did_you_mean(key, ALIASES) for key in chosen if "unknown key" in reason and "did you" not in reason]
        raise ConfigError(f"--over {label}: {reason}{''.join(hints)}") from error
    nested = built.model_dump(mode="json")
    values: dict[str, Any] = {}
    for axis in axes:
        own = [_lookup(nested, setting) for setting in axis.settings]
        values[axis.key] = own[0] if all(each == own[0] for each in own) else " / ".join(map(told, own))
        if axis.key in chosen and isinstance(values[axis.key], Mapping):
            values[axis.key] = json.loads(chosen[axis.key])  # without the defaults of what was written
    texts = {key: told(value) for key, value in values.items()}
    parts = [f"{axis.key.rpartition('.')[2]} {texts[axis.key]}" for axis in varied if not axis.of_sampling]
    trainings = []
    for seed in range(built.train.seed, built.train.seed + seeds):
        own_recipe = built.model_copy(update={"train": built.train.model_copy(update={"seed": seed})})
        label = ", ".join([*parts, f"seed {seed}"] if seeds > 1 else parts)
        trainings.append(Training(own_recipe, label, _digest(own_recipe)))
    return Combination(values=values, texts=texts, recipe=built, trainings=tuple(trainings))


def _digest(recipe: Recipe) -> str:
    """Of what decides the weights. Defaults are left out, so a setting that a later version adds changes nothing."""
    settings = flatten(recipe.model_dump(mode="json", exclude_defaults=True))
    decisive = {key: value for key, value in settings.items() if recipe.decides_weights(key) or key == "data.source"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def _identity(one: Combination) -> tuple[str, str]:
    return one.trainings[0].digest, repr(one.generation)


def _check(combination: Combination) -> None:
    """Refuse what the recipe's own validation does not see."""
    recipe, generation = combination.recipe, combination.generation
    if not member_of_kind(recipe.kind).generates:
        raise ConfigError(f"the recipe {recipe.name} trains a tokenizer, which has no samples to score")
    if recipe.data.source is None:
        raise ConfigError(f"the recipe {recipe.name} brings no data: name some (see `spheregen train`) with --data")
    generation_angles(recipe.sampling.schedule, recipe.sampling.steps)
    if "sampling.guidance" in combination.texts and recipe.sampling.guidance != generation.guidance:
        raise ConfigError("a model without classes has no guidance; leave --over sampling.guidance out")
    _work(_as_for_cost(recipe))


def _lookup(values: Any, setting: str) -> Any:
    for part in setting.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def told(value: Any) -> str:
    """Return a plain value for people."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _as_for_cost(recipe: Recipe) -> Recipe:
    """One recipe for all whose steps cost the same, so that others need no second look."""
    model = recipe.model
    if hasattr(model, "max_angle"):
        model = dataclasses.replace(model, max_angle=type(model).max_angle)
    same = {"data": DataConfig(), "optimizer": OptimizerConfig(), "train": TrainConfig(steps=1)}
    return recipe.model_copy(
        update={"name": "", "description": "", "init": None, "model": model, "sampling": SamplingConfig(), **same}
    )


@functools.cache
def _work(recipe: Recipe) -> tuple[int, float]:
    """Parameters, and operations of a training step for one image; builds networks and loss, without memory."""
    return count_parameters(objective_on_meta(recipe).model), step_cost(recipe).flops_per_image
