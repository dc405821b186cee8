"""What a training run is: one validated, frozen recipe, read from YAML with `--set a.b=c` in front."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spheregen.errors import ConfigError, did_you_mean
from spheregen.losses.autoencoder import AutoencoderLossConfig
from spheregen.models.autoencoder import AutoencoderConfig
from spheregen.noise import NoiseConfig
from spheregen.sampling.guidance import PLACES
from spheregen.sampling.schedules import SCHEDULES


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Which images, and how they become tensors."""

    source: str | None = None
    """`digits`, a folder, .zip, .parquet or .tar files or a pattern, a URL, or a Hub data set; None where the user
    brings the data (`--data`)."""
    split: str = "train"
    flips: bool = False
    """Mirror each image with probability 1/2; never for digits or text."""
    fit: Literal["crop", "pad"] = "crop"
    """Centre crop, or pad to a square."""
    resize: Literal["published", "adm", "bicubic", "nearest"] = "published"
    """How the shorter side reaches the image size; `published` is nearest up to 64 px and bicubic above."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB, 0 to 255, behind transparency and padding."""
    on_error: Literal["fail", "skip"] = "fail"
    """What an unreadable file does: stop before training, or be left out with a message."""
    check: bool | None = None
    """Decode every image once before the first step, to name the bad ones; None: unless they come over a network. A
    set that is kept in memory is decoded anyway."""
    stream: bool = False
    """Read a Hub data set over the network instead of downloading it first."""
    shuffle: Literal["auto", "full", "blocks"] = "auto"
    """Order of an epoch: all images permuted, or blocks of neighbours in random order, mixed in windows of 64 MiB.
    `auto` takes blocks where single images are slow to reach."""
    workers: int = Field(0, ge=0)
    """Processes that decode images; 0 decodes in the main process."""
    prefetch: int = Field(2, ge=1)
    """Batches that each worker decodes ahead."""
    cache_mb: int = Field(2048, ge=0)
    """A decoded set of up to this many MiB is kept in memory."""


class OptimizerConfig(_Section):
    """AdamW with warm-up and cosine decay, as published; or Muon on the matrices inside transformer blocks."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of the blocks' matrices and leaves the rest to AdamW; one `lr` serves both."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate at a batch of 256; it is scaled by batch/256."""
    scale_lr: bool = True
    """False takes `lr` as it is, whatever the batch."""
    encoder_lr: float = Field(0.1, gt=0)
    """The encoder's learning rate as a multiple of the others'."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    min_lr: float = Field(1e-6, ge=0)
    """Where the cosine ends."""
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = Field(0.95, ge=0, lt=1)
    """Of Muon; AdamW has `betas`."""
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    warmup_steps: int | None = Field(None, ge=0)
    warmup_epochs: float | None = Field(None, ge=0)
    """Length of the linear warm-up: steps or epochs, not both; none by default."""

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimizerConfig:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError("give warmup_steps or warmup_epochs, not both")
        return self


class TrainConfig(_Section):
    """How long, how large, how often."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    """Length of the run: steps or epochs, exactly one."""
    batch_size: int = Field(256, ge=1)
    """Images of one optimiser step."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Images of one pass through the network in one process; gradients of a batch add up, so the result stays the same
    up to rounding. `auto` finds the largest that fits into memory; None: the process's whole share of the batch."""
    ema: float = Field(0.9997, ge=0, lt=1)
    """Decay of the averaged weights per step; the averaged weights are the model that is saved."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic of the networks; weights stay float32. `auto`: bf16 on a GPU that has it, else float32."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the transformer blocks by torch.compile; `auto`: on a GPU, for runs of 200 steps or more."""
    recompute: bool = False
    """Keep no activations inside blocks but compute them again for the backward pass (activation checkpointing): a
    fraction of the memory, about a third more time, the same result."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes (see `torchrun`) share the work: each holds the whole model (`ddp`, also `auto`) or a shard
    of weights, gradients, moments and average (`fsdp`), for models that do not fit on one device."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """What several processes talk through; `auto`: nccl on GPUs, else gloo."""
    seed: int = Field(0, ge=0)
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=0)
    """Steps between preview pictures; 0 for none."""
    checkpoint_every: int = Field(1000, ge=1)
    keep: int = Field(2, ge=1)
    """Checkpoints that are kept."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the log goes too; `log.jsonl` is always written."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, exactly one of them")
        return self


class SamplingConfig(_Section):
    """How the trained model is sampled unless its user says otherwise."""

    steps: int = Field(4, ge=1)
    schedule: str = "fixed"
    guidance: float = Field(1.0, ge=0)
    guidance_at: str = "both"
    share_noise: bool = True
    """One noise for all refinement steps, or a fresh one for each."""

    @model_validator(mode="after")
    def _known_names(self) -> SamplingConfig:
        for value, known in ((self.schedule, SCHEDULES), (self.guidance_at, PLACES)):
            if value not in known:
                raise ValueError(f"unknown {value!r}{did_you_mean(value, known)}; use {', '.join(known)}")
        return self


class Recipe(_Section):
    """One training run."""

    name: str
    description: str = ""
    init: str | None = Field(None, min_length=1)
    """The model to fine-tune: a model folder, a bundled model or one of the Hub; None starts from random weights
    (`--init`). Read before the first step alone."""
    data: DataConfig = DataConfig()
    model: AutoencoderConfig
    noise: NoiseConfig = NoiseConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    perceptual: Literal["auto", "published", "builtin", "none"] = "auto"
    """Provider of the perceptual distance; `auto` takes the published networks where their weights are at hand."""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    sampling: SamplingConfig = SamplingConfig()

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the run on a data set of `images`."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return max(1, math.ceil(self.train.epochs * images / self.train.batch_size))

    def warmup_steps(self, images: int) -> int:
        """Warm-up steps on a data set of `images`."""
        if self.optimizer.warmup_epochs is not None:
            return round(self.optimizer.warmup_epochs * images / self.train.batch_size)
        return self.optimizer.warmup_steps or 0


# Settings that change what a run prints and keeps or how its sums are rounded, but not what it computes: they may
# differ when it continues.
FREE_TO_CHANGE = frozenset(
    {
        "name",
        "description",
        "data.source",  # the fingerprint of the data decides, not its path
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
        *(f"sampling.{name}" for name in SamplingConfig.model_fields),
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
        return Recipe.model_validate(values)
    except ValidationError as error:
        # where a size may be a name or a mapping, only what is wrong with the mapping helps
        problems = [p for p in error.errors() if not (p["type"] == "string_type" and isinstance(p["input"], dict))]
        raise ConfigError(f"{origin}: {'; '.join(_explain(problem) for problem in problems)}") from error


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
        return Recipe.model_validate(values).model_dump(mode="json")
    except ValidationError:
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


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    # pydantic names the branch of a union in the path; users know only the keys
    location = [part for part in location if not _BRANCH.fullmatch(part)]
    dotted = ".".join(location) or "settings"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(location[:-1])
        choices = f" (known here: {', '.join(known)})" if known else ""
        return f"unknown key {dotted}{did_you_mean(location[-1], known) or choices}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if not message[:2].isupper() else message
    if problem["type"] in ("value_error", "missing") or isinstance(problem["input"], dict):
        return f"{dotted}: {message}"
    return f"{dotted}: {message} (not {problem['input']!r})"


def _known_keys(path: Sequence[str]) -> list[str]:
    """The keys of the section at `path`."""
    section: Any = Recipe
    for name in path:
        fields = getattr(section, "model_fields", None)
        annotation = fields[name].annotation if fields and name in fields else section.__annotations__.get(name)
        nested = [option for option in get_args(annotation) if hasattr(option, "__dataclass_fields__")]
        section = nested[0] if nested else annotation
    if hasattr(section, "model_fields"):
        return list(section.model_fields)
    return list(getattr(section, "__dataclass_fields__", ()))
