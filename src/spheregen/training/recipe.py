"""What a training run is: one validated, frozen recipe, read from YAML with `--set a.b=c` in front."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from spheregen.errors import ConfigError, did_you_mean
from spheregen.losses.autoencoder import AutoencoderLossConfig
from spheregen.losses.flow import FlowLossConfig
from spheregen.losses.latent_denoiser import LatentDenoiserLossConfig
from spheregen.losses.representation import RepresentationLossConfig
from spheregen.models.autoencoder import AutoencoderConfig
from spheregen.models.flow_refiner import FlowRefinerConfig
from spheregen.models.latent_denoiser import LatentDenoiserConfig
from spheregen.noise import NoiseConfig
from spheregen.sampling.flow import MOST_STEPS
from spheregen.tokenizers.representation import RepresentationConfig
from spheregen.training.settings import (
    DataConfig,
    Learner,
    OptimizerConfig,
    SamplingConfig,
    Section,
    TrainConfig,
)

Perceptual = Literal["auto", "published", "builtin", "none"]


class Recipe(Section):
    """One training run. Each kind of model has a recipe class of its own, which adds what that kind is made of."""

    name: str
    description: str = ""
    kind: str
    """What is trained; chooses the recipe class, see `KINDS`."""
    init: str | None = Field(None, min_length=1)
    """The model to fine-tune: a model folder, a bundled model or one of the Hub; None starts from random weights
    (`--init`). Read before the first step alone."""
    data: DataConfig = DataConfig()
    model: Any
    """The architecture, a configuration class of its own for each kind; all have `image_size`, `image_channels`,
    `num_classes`, `transformers` and `with_transformers`."""
    loss: Any
    """Weights of the loss, likewise."""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    sampling: SamplingConfig = SamplingConfig()

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the run on a data set of `images`."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return max(1, math.ceil(self.train.epochs * images / self.train.batch_size))

    def warmup_steps(self, images: int, optimizer: OptimizerConfig | None = None) -> int:
        """Warm-up steps on a data set of `images`, of an optimiser or of the main one."""
        optimizer = optimizer or self.optimizer
        if optimizer.warmup_epochs is not None:
            return round(optimizer.warmup_epochs * images / self.train.batch_size)
        return optimizer.warmup_steps or 0

    @property
    def learners(self) -> tuple[Learner, ...]:
        """The parts of the model with optimisers of their own."""
        return (Learner("", self.optimizer),)


class AutoencoderRecipe(Recipe):
    """System 1: a Sphere Encoder."""

    kind: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderConfig
    noise: NoiseConfig = NoiseConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    perceptual: Perceptual = "auto"
    """Provider of the perceptual distance; `auto` takes the published networks where their weights are at hand."""


class LatentDenoiserRecipe(Recipe):
    """System 2: a denoiser on the sphere of a frozen tokenizer. Its data are a latent cache of `spheregen encode`."""

    kind: Literal["latent-denoiser"] = "latent-denoiser"
    tokenizer: str | None = None
    """What the recipe was made for: a tokenizer's folder or the name of a published one, whose cost `spheregen info`
    counts. Training takes the tokenizer that is in the cache."""
    model: LatentDenoiserConfig
    noise: NoiseConfig = NoiseConfig(law="logit_normal", hard_probability=0.2)
    loss: LatentDenoiserLossConfig = LatentDenoiserLossConfig()


class RepresentationRecipe(Recipe):
    """A tokenizer for system 2: a decoder of a frozen encoder's tokens, trained on images."""

    kind: Literal["representation"] = "representation"
    model: RepresentationConfig
    loss: RepresentationLossConfig = RepresentationLossConfig()
    perceptual: Perceptual = "auto"
    """Provider of the perceptual distance; `auto` takes the published networks where their weights are at hand."""


class SphereFlowSampling(SamplingConfig):
    """How a refined generator is sampled: the rough image by the loop of every generator, then the flow."""

    steps: int = Field(1, ge=1)
    refinement_steps: int = Field(4, ge=0, le=MOST_STEPS)
    """Steps of the flow; 0 leaves images rough."""
    solver: Literal["euler", "heun", "midpoint"] = "heun"
    """Of the flow; the last step is the plain prediction."""
    refinement_guidance: float | None = Field(None, ge=0)
    """Guidance of the flow; None: as that of the rough image."""


class PhasesConfig(Section):
    """When autoencoder and refiner learn, as shares of the run."""

    joint_from: float = Field(0.25, ge=0, lt=1)
    """Before it the autoencoder learns alone."""
    refiner_from: float = Field(1.0, ge=0, le=1)
    """From it the refiner learns alone; 1: never."""

    @model_validator(mode="after")
    def _some_of_each(self) -> PhasesConfig:
        if not self.refiner_from:
            raise ValueError("refiner_from is 0, so the autoencoder would never learn; name a trained one as `source`")
        if self.joint_from > self.refiner_from:
            raise ValueError("joint_from lies behind refiner_from: in between nothing would learn")
        return self


class TeacherConfig(Section):
    """A trained refiner whose images another one learns to make in fewer steps, and how it makes them."""

    model: str = Field(min_length=1)
    """A model folder of kind sphere-flow, or one of the Hub, frozen; the generator in front of it becomes that of the
    refiner that learns."""
    refinement_steps: int = Field(4, ge=1, le=MOST_STEPS)
    solver: Literal["euler", "heun", "midpoint"] = "heun"
    refinement_guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    guidance: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Of the rough images that both refine, which are of one step."""


class SphereFlowRecipe(Recipe):
    """System 3: a flow that refines the images of a small Sphere Encoder trained along, or of any generator."""

    kind: Literal["sphere-flow"] = "sphere-flow"
    source: str | None = Field(None, min_length=1)
    """The generator whose images are refined: a model folder, a bundled model or one of the Hub, frozen; None trains
    `autoencoder`."""
    autoencoder: AutoencoderConfig | None = None
    """The Sphere Encoder that is trained along; None where there is a `source`."""
    teacher: TeacherConfig | None = None
    """The refiner to learn from instead of the images of the data; it stands for a `source`, and unless `init` is told,
    the run starts from its weights."""
    model: FlowRefinerConfig
    noise: NoiseConfig = NoiseConfig()
    loss: FlowLossConfig = FlowLossConfig()
    """Of the refiner."""
    autoencoder_loss: AutoencoderLossConfig = AutoencoderLossConfig()
    perceptual: Perceptual = "auto"
    """Provider of the perceptual distance; `auto` takes the published networks where their weights are at hand."""
    phases: PhasesConfig = PhasesConfig()
    """Of autoencoder and refiner; not used with a `source` or a `teacher`."""
    autoencoder_optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SphereFlowSampling = SphereFlowSampling()

    @model_validator(mode="before")
    @classmethod
    def _from_its_teacher(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("teacher"), dict) and "init" not in values:
            return values | {"init": values["teacher"].get("model")}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> SphereFlowRecipe:
        if sum(each is not None for each in (self.source, self.autoencoder, self.teacher)) != 1:
            raise ValueError(
                "give `autoencoder`, to train one along, `source`, a trained generator, or `teacher`, a trained "
                "refiner: one of them"
            )
        if self.autoencoder is None:
            return self
        for name in ("image_size", "image_channels"):
            ours, theirs = getattr(self.model, name), getattr(self.autoencoder, name)
            if ours != theirs:
                raise ValueError(f"model.{name} is {ours} and autoencoder.{name} {theirs}; they must agree")
        if self.autoencoder.num_classes not in (0, self.model.num_classes):
            raise ValueError("autoencoder.num_classes is 0 or that of the model")
        width = self.autoencoder.decoder_size.width
        try:
            self.model.completed((self.autoencoder.tokens, self.autoencoder.channels), width)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def needs_perceptual(self) -> bool:
        return self.loss.needs_perceptual or (self.autoencoder is not None and self.autoencoder_loss.needs_perceptual)

    @property
    def learners(self) -> tuple[Learner, ...]:
        parts = ("refiner", "critic")
        if self.autoencoder is None:
            return (Learner("refiner", self.optimizer, parts=parts),)
        return (
            Learner("autoencoder", self.autoencoder_optimizer, end=self.phases.refiner_from),
            Learner("refiner", self.optimizer, begin=self.phases.joint_from, parts=parts),
        )


KINDS: Mapping[str, type[Recipe]] = MappingProxyType(
    {
        "autoencoder": AutoencoderRecipe,
        "latent-denoiser": LatentDenoiserRecipe,
        "representation": RepresentationRecipe,
        "sphere-flow": SphereFlowRecipe,
    }
)
"""Recipe classes by the `kind` of a recipe."""


# Settings that change what a run prints and keeps or how its sums are rounded, but not what it computes: they may
# differ when it continues.
FREE_TO_CHANGE = frozenset(
    {
        "name",
        "description",
        "data.source",  # the fingerprint of the data decides, not its path
        "tokenizer",  # training takes the cache's
        "source",  # its fingerprint decides
        "teacher.model",  # likewise
        "data.check",
        "data.stream",
        "data.workers",
        "data.prefetch",
        "data.cache_mb",
        "train.micro_batch",
        "train.compile",
        "train.recompute",
        "train.parallel",
        "train.backend",
        "train.trackers",
        "train.log_every",
        "train.preview_every",
        "train.checkpoint_every",
        "train.keep",
        *(f"sampling.{name}" for name in SphereFlowSampling.model_fields),
    }
)


def shipped_recipes() -> dict[str, str]:
    """The recipes in the package: name to YAML text, by name."""
    folder = resources.files("spheregen.recipes")
    files = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for name, file in files}


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), *, data: str | None = None, init: str | None = None
) -> Recipe:
    """Read a recipe by its shipped name or from a YAML file, with `a.b=c` overrides in front of it.

    Args:
        data: becomes `data.source`, where it is given.
        init: becomes `init`, likewise.

    Raises:
        ConfigError: unknown recipe or key, impossible value; all problems in one line.
    """
    shipped = shipped_recipes()
    path = Path(recipe)
    if str(recipe) in shipped:
        text, origin = shipped[str(recipe)], f"recipe {recipe}"
    elif path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text, origin = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    else:
        hint = did_you_mean(str(recipe), shipped)
        raise ConfigError(f"unknown recipe {str(recipe)!r}{hint}; shipped: {', '.join(shipped)}, or give a .yaml file")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must be a mapping of settings such as `model:` and `train:`")
    values.setdefault("name", path.stem)
    if data is not None:
        _section(values, ["data"], "--data")["source"] = data
    if init is not None:
        values["init"] = init
    for override in overrides:
        _apply_override(values, override)
    return build_recipe(values, origin)


def build_recipe(values: Mapping[str, Any], origin: str = "the recipe") -> Recipe:
    """Validate plain values into a recipe; every problem is named with its dotted path.

    Raises:
        ConfigError: one line with all problems.
    """
    try:
        return recipe_class(values, origin).model_validate(values)
    except ValidationError as error:
        # where a size may be a name or a mapping, only what is wrong with the mapping helps
        problems = [p for p in error.errors() if not (p["type"] == "string_type" and isinstance(p["input"], dict))]
        section = recipe_class(values, origin)
        raise ConfigError(f"{origin}: {'; '.join(_explain(problem, section) for problem in problems)}") from error


def recipe_class(values: Mapping[str, Any], origin: str = "the recipe") -> type[Recipe]:
    """The recipe class that plain values ask for by their `kind`; without one, an autoencoder's.

    Raises:
        ConfigError: there is no such kind.
    """
    kind = values.get("kind", "autoencoder")
    if kind not in KINDS:
        raise ConfigError(f"{origin}: unknown kind {kind!r}{did_you_mean(str(kind), KINDS)}; use {', '.join(KINDS)}")
    return KINDS[kind]


def recipe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of two dumped recipes differs and would change the weights, as `key: old -> new` lines.

    A setting that `old` lacks, because it is older than the setting, had its default.
    """
    before, after = flatten(_with_defaults(old)), flatten(new)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if key not in FREE_TO_CHANGE and before.get(key) != after.get(key)
    ]


def _with_defaults(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A dumped recipe with all settings of today; as it is where it cannot be read any more."""
    try:
        return recipe_class(values).model_validate(values).model_dump(mode="json")
    except (ValidationError, ConfigError):
        return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, for example train.steps=1000, not {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    *sections, last = key.strip().split(".")
    _section(values, sections, f"--set {override}")[last] = value
    # one length and one warm-up at a time: setting one replaces its twin from the recipe
    twins = {"steps": "epochs", "warmup_steps": "warmup_epochs", "latent_channels": "compression"}
    twins |= {value: key for key, value in twins.items()}
    if last in twins and sections and value is not None:
        _section(values, sections, override).pop(twins[last], None)


def _section(values: dict[str, Any], path: Sequence[str], what: str) -> dict[str, Any]:
    for name in path:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"{what}: {name} is a single value, not a section")
    return values


_BRANCH = re.compile(r"TransformerSize|str|bool|constrained-int|literal\[.*\]")


def _explain(problem: Any, recipe: type[Recipe]) -> str:
    location = [str(part) for part in problem["loc"]]
    # pydantic names the branch of a union in the path; users know only the keys
    location = [part for part in location if not _BRANCH.fullmatch(part)]
    dotted = ".".join(location) or "settings"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(location[:-1], recipe)
        choices = f" (known here: {', '.join(known)})" if known else ""
        return f"unknown key {dotted}{did_you_mean(location[-1], known) or choices}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if not message[:2].isupper() else message
    if problem["type"] in ("value_error", "missing") or isinstance(problem["input"], dict):
        return f"{dotted}: {message}"
    return f"{dotted}: {message} (not {problem['input']!r})"


def _known_keys(path: Sequence[str], recipe: type[Recipe]) -> list[str]:
    """The keys of the section at `path`."""
    section: Any = recipe
    for name in path:
        fields = getattr(section, "model_fields", None)
        annotation = fields[name].annotation if fields and name in fields else section.__annotations__.get(name)
        nested = [option for option in get_args(annotation) if hasattr(option, "__dataclass_fields__")]
        section = nested[0] if nested else annotation
    if hasattr(section, "model_fields"):
        return list(section.model_fields)
    return list(getattr(section, "__dataclass_fields__", ()))
