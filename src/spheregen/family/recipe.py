"""The settings of every recipe, whatever it trains; each member of the family derives a class of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from spheregen.family.settings import (
    DataConfig,
    OptimizerConfig,
    ParameterGroup,
    SamplingConfig,
    Section,
    TrainConfig,
)

Perceptual = Literal["auto", "published", "builtin", "none"]
"""Provider of the perceptual distance; `auto` takes the published networks where their weights are at hand."""


class Recipe(Section):
    """One training run."""

    name: str
    description: str = ""
    kind: str
    """The member of the family that is trained."""
    init: str | None = Field(None, min_length=1)
    """The model to fine-tune: a model folder, a bundled model or one of the Hub; None starts from random weights
    (`--init`). Read before the first step alone."""
    data: DataConfig = DataConfig()
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
        }
    )
    """Settings, beside all of `sampling`, that may differ when a run continues: they change what it prints and keeps or
    how sums are rounded, not what it computes."""

    @classmethod
    def decides_weights(cls, key: str) -> bool:
        """Return whether a run with another value of this dotted key would get other weights."""
        return key not in cls.free_to_change and not key.startswith("sampling.")

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
    def max_angle(self) -> float | None:
        """The largest noise angle of training in degrees; None where there is none."""
        return getattr(self.model, "max_angle", None)
