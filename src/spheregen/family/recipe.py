"""The settings of every recipe, whatever it trains; each member of the family derives a class of its own."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spheregen.errors import did_you_mean
from spheregen.networks.text import TextEncoderConfig
from spheregen.sampling.loop import PLACES, STARTS
from spheregen.sampling.schedules import SCHEDULES

MOST = 10**12
"""Steps or epochs: more is a slip of the pen."""
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """The images, and their way to tensors."""

    source: str | None = None
    """`digits`, a folder, .zip, .parquet or .tar files or a pattern, a URL, or a Hub data set; None where the user
    brings the data (`--data`)."""
    split: str = "train"
    flips: bool = False
    """Mirror each image with probability 1/2; never for digits or text."""
    fit: Literal["crop", "pad"] = "crop"
    """Centre crop, or pad to a square."""
    resize: Literal["published", "adm", "bicubic", "nearest"] = "published"
    """The way the shorter side reaches the image size; `published` is nearest up to 64 px and bicubic above."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB, 0 to 255, behind transparency and padding."""
    on_error: Literal["fail", "skip"] = "fail"
    """The effect of an unreadable file: stop before training, or be left out with a message."""
    check: bool | None = None
    """Decode every image once before the first step, to name the bad ones; None: unless they come over a network. A
    set that is kept in memory is decoded anyway."""
    captions: str | None = None
    """The captions of a model that follows texts: a column or field, a table of file names and captions, or `classes`
    for the names of classes; None: what the images have, else the names of their classes."""
    templates: tuple[str, ...] = ("{}",)
    """Captions made of the name of a class, such as `a photo of a {}`."""
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


class OptimizerConfig(Section):
    """AdamW with warm-up and cosine decay, as published; or Muon on the matrices inside transformer blocks."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of the blocks' matrices and leaves the rest to AdamW; one `lr` serves both."""
    lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Peak learning rate at a batch of 256; it is scaled by batch/256."""
    scale_lr: bool = True
    """False takes `lr` as it is, whatever the batch."""
    encoder_lr: float = Field(0.1, gt=0)
    """The encoder's learning rate as a multiple of the others'."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate after the warm-up."""
    min_lr: float = Field(1e-6, ge=0)
    """The end of the cosine."""
    betas: tuple[Share, Share] = (0.9, 0.95)
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


@dataclass(frozen=True)
class ParameterGroup:
    """A part of a model with an optimiser of its own, and the share of a run in which it learns."""

    name: str
    """For people and logs; empty where the whole model is one group."""
    optimizer: OptimizerConfig
    begin: float = 0.0
    """The share of the run, 0 to 1, from which it learns."""
    end: float = 1.0
    """The share at which it rests again."""
    parts: tuple[str, ...] = ()
    """The modules of the model that are its own; by default the one of its name."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The beginnings of the names of its parameters."""
        return tuple(f"{part}." for part in self.parts or (self.name,)) if self.name else ("",)

    def learns_at(self, progress: float) -> bool:
        """Return whether it learns when this share of the run is done; before step 0 <= t < total that is t / total."""
        return self.begin <= progress and (progress < self.end or self.end >= 1)

    def steps(self, total: int) -> range:
        """The steps of a run in which it learns."""
        first, last = (
            bisect_left(range(total), share, key=lambda step: step / total) for share in (self.begin, self.end)
        )
        return range(first, last)


class TrainConfig(Section):
    """Length, sizes and intervals of a run."""

    steps: int | None = Field(None, ge=1, le=MOST)
    epochs: float | None = Field(None, gt=0, le=MOST)
    """Length of the run: steps or epochs, exactly one."""
    batch_size: int = Field(256, ge=1, le=1 << 20)
    """Images of one optimiser step."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Images of one pass through the network in one process; gradients of a batch add up, so the result stays the same
    up to rounding. `auto` finds the largest that fits into memory; None: the process's whole share of the batch."""
    ema: float = Field(0.9997, ge=0, lt=1)
    """Decay of the EMA per step; the EMA is the model that is saved."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic of the networks; weights stay float32. `auto`: bf16 on a device that is fast in it, where a network is
    wide enough or compiled, else float32."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the transformer blocks by torch.compile; `auto`: on a GPU for runs of 200 steps or more, on a CPU with
    bf16 units for runs of ten minutes and more."""
    recompute: bool = False
    """Keep no activations inside blocks but compute them again for the backward pass (activation checkpointing): a
    fraction of the memory, about a third more time, the same result."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """The way several processes (see `torchrun`) share the work: each holds the whole model (`ddp`, also `auto`) or a
    shard of weights, gradients, moments and EMA (`fsdp`), for models that do not fit on one device."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """The channel between several processes; `auto`: nccl on GPUs, else gloo."""
    seed: int = Field(0, ge=0, lt=2**63)
    log_every: int = Field(50, ge=1)
    preview_every: int = Field(1000, ge=0)
    """Steps between preview images; 0 for none."""
    checkpoint_every: int = Field(1000, ge=1)
    keep: int = Field(2, ge=1)
    """Checkpoints that are kept."""
    fit_prior: bool = True
    """Fit a prior to the codes of the data at the end, which `sample --set prior=fitted` draws from."""
    tune: bool = True
    """Measure the defaults of sampling at the end, of runs of 20 minutes and more on images, in about a twentieth of
    their time; see `spheregen tune`."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Further places for the log; `log.jsonl` is always written."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give steps or epochs, exactly one of them")
        return self


class SamplingConfig(Section):
    """The way the trained model is sampled unless its user says otherwise."""

    steps: int = Field(4, ge=1)
    schedule: str = "fixed"
    guidance: float = Field(1.0, ge=0)
    guidance_at: str = "both"
    share_noise: bool = True
    """One noise for all refinement steps, or a fresh one for each."""
    strength: float = Field(1.0, ge=0)
    """A factor of the noise of the steps."""
    prior: str = "sphere"
    """The random points: uniform ones (`sphere`), or those where the codes of the data are (`fitted`)."""
    temperature: float = Field(1.0, ge=0)
    """Of a fitted prior: below 1 its draws are nearer to the mean of their class."""
    prior_angle: float = Field(0.0, ge=0, le=90)
    """Degrees by which noise moves draws of a fitted prior."""

    @model_validator(mode="after")
    def _known_names(self) -> SamplingConfig:
        for value, known in ((self.schedule, SCHEDULES), (self.guidance_at, PLACES), (self.prior, STARTS)):
            if value not in known:
                raise ValueError(f"unknown {value!r}{did_you_mean(value, known)}; use {', '.join(known)}")
        return self


Perceptual = Literal["auto", "published", "builtin", "none"]
"""Provider of the perceptual distance; `auto` takes the published networks where their weights are at hand."""


class Recipe(Section):
    """One training run."""

    name: str = Field(pattern=r"^[^/\\\x00]*[^/\\\x00.][^/\\\x00]*$")
    """Also of the run folder unless another is given: no path."""
    description: str = ""
    kind: str
    """The member of the family that is trained."""
    init: str | None = Field(None, min_length=1)
    """The model to fine-tune: a model folder, a bundled model or one of the Hub; None starts from random weights
    (`--init`). Read before the first step alone."""
    data: DataConfig = DataConfig()
    text: TextEncoderConfig = TextEncoderConfig()
    """The text encoder of a model that follows texts: one with a `model.text_width`, which is that of its vectors."""
    model: Any
    """The architecture; has `image_size`, `image_channels` and `num_classes`."""
    loss: Any
    """Weights of the loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    sampling: SamplingConfig = SamplingConfig()

    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {
            "name",
            "description",
            "data.source",  # the fingerprint of the data decides, not its path
            "data.captions",  # as with captions
            "data.templates",
            "data.check",
            "data.stream",
            "data.workers",
            "data.prefetch",
            "data.cache_mb",
            "train.micro_batch",
            "train.tune",
            "train.compile",
            "train.recompute",
            "train.parallel",
            "train.backend",
            "train.trackers",
            "train.log_every",
            "train.preview_every",
            "train.checkpoint_every",
            "train.keep",
        }
    )
    """Settings, beside all of `sampling`, that may differ when a run continues: they change what it prints and keeps or
    how sums are rounded, not what it computes."""

    @classmethod
    def decides_weights(cls, key: str) -> bool:
        """Return whether a run with another value of this dotted key would get other weights."""
        return key not in cls.free_to_change and not key.startswith("sampling.")

    @classmethod
    def model_behind(cls, values: Mapping[str, Any]) -> str | None:
        """Return the name of the trained model that plain values put in front of the one to train, if they do."""
        return None

    def total_steps(self, images: int) -> int:
        """Return the optimiser steps of the run on a data set of `images`."""
        if self.train.steps is not None:
            return self.train.steps
        assert self.train.epochs is not None
        return max(1, math.ceil(self.train.epochs * images / self.train.batch_size))

    def warmup_steps(self, images: int, optimizer: OptimizerConfig | None = None) -> int:
        """Return the warm-up steps on a data set of `images`, of an optimiser or of the main one."""
        optimizer = optimizer or self.optimizer
        if optimizer.warmup_epochs is not None:
            return round(optimizer.warmup_epochs * images / self.train.batch_size)
        return optimizer.warmup_steps or 0

    @property
    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The parts of the model with optimisers of their own."""
        return (ParameterGroup("", self.optimizer),)

    @property
    def bound_to_length(self) -> tuple[str, ...]:
        """The settings by which steps depend on the length of the run; without any, a run can be made longer."""
        groups = self.parameter_groups
        found = {
            "optimizer.schedule": any(group.optimizer.schedule != "constant" for group in groups),
            "phases": any(group.begin > 0 or group.end < 1 for group in groups),
            "loss.adversarial_start": getattr(self.loss, "adversarial", 0) > 0,
        }
        return tuple(name for name, bound in found.items() if bound)

    @property
    def max_angle(self) -> float | None:
        """The largest noise angle of training in degrees; None where there is none."""
        return getattr(self.model, "max_angle", None)
