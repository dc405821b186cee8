"""The optimiser and its schedule, built from the tags that layers put on their parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spheregen.nn.tags import DECAY, ENCODER, NO_DECAY, tags_of
from spheregen.training.recipe import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group for each combination of learning rate and weight decay; each parameter is in exactly one.

    Raises:
        ValueError: a layer left a parameter untagged or tagged it twice.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        tags = tags_of(parameter)
        if len(tags & {DECAY, NO_DECAY}) != 1:
            raise ValueError(f"parameter {name} needs exactly one of the tags {DECAY}, {NO_DECAY}; it has {set(tags)}")
        groups.setdefault((ENCODER in tags, DECAY in tags), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_factor": config.encoder_lr if encoder else 1.0,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (encoder, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over the model's tagged parameters."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, betas=config.betas, fused=True)


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up peak*(t+1)/(W+1), then cosine decay that reaches `floor` when all steps are done."""

    peak: float
    floor: float
    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        """The learning rate of step 0 <= t < total."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def learning_rate(config: OptimizerConfig, *, batch_size: int, warmup: int, total: int) -> LearningRate:
    """The schedule of a run."""
    peak = config.lr * batch_size / 256 if config.scale_lr else config.lr
    return LearningRate(peak=peak, floor=min(config.min_lr, peak), warmup=warmup, total=total)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set each group to `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
