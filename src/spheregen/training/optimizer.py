"""The optimiser and its schedule, built from the tags that layers put on their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spheregen.distributed import whole
from spheregen.nn.tags import DECAY, ENCODER, HIDDEN, NO_DECAY, tags_of
from spheregen.training.settings import Learner, OptimizerConfig

THINNEST = 32
"""Matrices with a side below this go to AdamW: Muon gains nothing there and fails on them when they are sharded."""

Tags = Mapping[str, frozenset[str]]


def tags_by_name(model: nn.Module) -> Tags:
    """The tags of each parameter that learns. Take them before the model is sharded, which makes new parameters.

    Raises:
        ValueError: a layer left a parameter untagged or tagged it twice.
    """
    tags = {name: tags_of(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, found in tags.items():
        if len(found & {DECAY, NO_DECAY}) != 1:
            raise ValueError(f"parameter {name} needs exactly one of the tags {DECAY}, {NO_DECAY}; it has {set(found)}")
    return tags


def parameter_groups(model: nn.Module, tags: Tags, config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group for each combination of rule, learning rate and weight decay; each parameter is in exactly one.

    A group has `muon` beside what torch reads: whether its matrices are Muon's.
    """
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name not in tags:
            continue
        muon = config.name == "muon" and HIDDEN in tags[name] and min(parameter.shape) >= THINNEST
        groups.setdefault((muon, ENCODER in tags[name], DECAY in tags[name]), []).append(parameter)
    return [
        {
            "params": parameters,
            "muon": muon,
            "lr_factor": config.encoder_lr if encoder else 1.0,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (muon, encoder, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


class Optimizers:
    """The optimisers of a model's learners as one; each sees its own parameters alone.

    Args:
        model: sharded or not.
        tags: of `tags_by_name`.
        learners: whose prefixes part the parameters of the model.
    """

    def __init__(self, model: nn.Module, tags: Tags, learners: Sequence[Learner]) -> None:
        self.learners = {learner.name: learner for learner in learners}
        self._parts: dict[str, tuple[Optimizer, list[nn.Parameter]]] = {}
        for learner in learners:
            own = {name: tag for name, tag in tags.items() if name.startswith(learner.prefixes)}
            parameters = [parameter for name, parameter in model.named_parameters() if name in own]
            self._parts[learner.name] = (Optimizer(model, own, learner.optimizer), parameters)

    def step(self, rates: Mapping[str, float]) -> Tensor:
        """Clip and update the learners that have a learning rate here; then all gradients are gone.

        Returns:
            The norm of their gradients together, before it was clipped.
        """
        norms = []
        for name, rate in rates.items():
            optimizer, parameters = self._parts[name]
            norms.append(nn.utils.clip_grad_norm_(parameters, self.learners[name].optimizer.clip))
            optimizer.step(rate)
        self.zero_grad()
        return norms[0] if len(norms) == 1 else torch.stack([whole(norm) for norm in norms]).norm()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer, _ in self._parts.values():
            optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """As of `Optimizer`."""
        return {key: value for optimizer, _ in self._parts.values() for key, value in optimizer.state().items()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """As of `Optimizer`; a learner of which there is nothing has not begun to learn.

        Raises:
            KeyError: a part of a learner's state is missing; its argument is `parameter|key`.
        """
        for name, (optimizer, _) in self._parts.items():
            prefixes = self.learners[name].prefixes
            if not self.learners[name].begin or any(parameter.startswith(prefixes) for parameter in state):
                optimizer.load_state(state)


class Optimizer:
    """AdamW, alone or beside Muon, as one: a step, a learning rate, and its state by parameter name."""

    def __init__(self, model: nn.Module, tags: Tags, config: OptimizerConfig) -> None:
        groups = parameter_groups(model, tags, config)
        self._named = {name: parameter for name, parameter in model.named_parameters() if name in tags}
        self.parts: list[torch.optim.Optimizer] = []
        if rest := [group for group in groups if not group["muon"]]:
            self.parts.append(torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True))
        if matrices := [group for group in groups if group["muon"]]:
            # scaled to the size of AdamW's updates, so that one learning rate serves both
            self.parts.append(
                torch.optim.Muon(
                    matrices, lr=config.lr, momentum=config.momentum, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
                )
            )

    def step(self, lr: float) -> None:
        """One update at learning rate `lr`, times each group's own factor; then the gradients are gone."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_factor"]
            part.step()
            part.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts as `parameter|key`, in the order of the model's parameters."""
        names = {parameter: name for name, parameter in self._named.items()}
        found = {names[p]: part.state[p] for part in self.parts for p in names if p in part.state}
        return {f"{name}|{key}": value for name in self._named for key, value in found.get(name, {}).items()}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back the state of each parameter, by its name; tensors are shared, not copied.

        Raises:
            KeyError: a parameter's state or a part of it is missing; its argument is `parameter|key`.
        """
        for part in self.parts:
            keys = ("momentum_buffer",) if isinstance(part, torch.optim.Muon) else ("step", "exp_avg", "exp_avg_sq")
            ours = {parameter for group in part.param_groups for parameter in group["params"]}
            for name, parameter in self._named.items():
                if parameter in ours:
                    missing = [key for key in keys if key not in state.get(name, {})]
                    if missing:
                        raise KeyError(f"{name}|{missing[0]}")
                    part.state[parameter] = {key: state[name][key] for key in keys}


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up peak*(t+1)/(W+1), then cosine decay that reaches `floor` when all steps are done; constant where
    `floor` is the peak."""

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


class LearningRates:
    """The learning rates of all learners that learn in a step, by name.

    Each has warm-up and decay over the steps in which it learns.

    Args:
        warmups: warm-up steps of each learner.
        total: steps of the run.
    """

    def __init__(self, learners: Sequence[Learner], *, batch_size: int, warmups: Mapping[str, int], total: int) -> None:
        self._parts = {
            learner.name: (
                learner.steps(total),
                learning_rate(
                    learner.optimizer,
                    batch_size=batch_size,
                    warmup=warmups[learner.name],
                    total=len(learner.steps(total)),
                ),
            )
            for learner in learners
        }

    def __call__(self, step: int) -> dict[str, float]:
        """Of step 0 <= t < total."""
        return {name: rate(step - steps.start) for name, (steps, rate) in self._parts.items() if step in steps}


def learning_rate(config: OptimizerConfig, *, batch_size: int, warmup: int, total: int) -> LearningRate:
    """The schedule of a run."""
    peak = config.lr * batch_size / 256 if config.scale_lr else config.lr
    floor = peak if config.schedule == "constant" else min(config.min_lr, peak)
    return LearningRate(peak=peak, floor=floor, warmup=warmup, total=total)
