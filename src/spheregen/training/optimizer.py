"""The optimiser and its schedule, built from the tags that layers put on their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spheregen.distributed import full_tensor
from spheregen.family.recipe import OptimizerConfig, ParameterGroup
from spheregen.nn.linear import DECAY, ENCODER, HIDDEN, NO_DECAY, tags_of

THINNEST = 32
"""Matrices with a side below this go to AdamW: Muon gains nothing there and fails on them when they are sharded."""

Tags = Mapping[str, frozenset[str]]


def tags_by_name(model: nn.Module) -> Tags:
    """Return the tags of each parameter that learns. Take them before the model is sharded: that makes new parameters.

    Raises:
        ValueError: a layer left a parameter untagged or tagged it twice.
    """
    tags = {name: tags_of(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, found in tags.items():
        if len(found & {DECAY, NO_DECAY}) != 1:
            raise ValueError(f"parameter {name} needs exactly one of the tags {DECAY}, {NO_DECAY}; it has {set(found)}")
    return tags


class Optimizer:
    """The optimisers of a model's parameter groups as one: for each AdamW, alone or beside Muon.

    Args:
        model: sharded or not.
        tags: of `tags_by_name`.
        groups: whose prefixes part the parameters of the model.
    """

    def __init__(self, model: nn.Module, tags: Tags, groups: Sequence[ParameterGroup]) -> None:
        self.groups = {group.name: group for group in groups}
        self._named = {name: parameter for name, parameter in model.named_parameters() if name in tags}
        self._parts: dict[str, list[torch.optim.Optimizer]] = {}
        for group in groups:
            own = {name: each for name, each in self._named.items() if name.startswith(group.prefixes)}
            self._parts[group.name] = _optimisers(own, tags, group.optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, as torch has them, with `muon`, which says whose they are, and their `lr_factor`."""
        return [group for parts in self._parts.values() for part in parts for group in part.param_groups]

    def step(self, rates: Mapping[str, float]) -> Tensor:
        """Clip and update the groups that have a learning rate here; then all gradients are gone.

        Returns:
            The norm of their gradients together, before it was clipped.
        """
        norms = []
        for name, rate in rates.items():
            group = self.groups[name]
            own = [parameter for key, parameter in self._named.items() if key.startswith(group.prefixes)]
            norms.append(nn.utils.clip_grad_norm_(own, group.optimizer.clip))
            for part in self._parts[name]:
                for params in part.param_groups:
                    params["lr"] = rate * params["lr_factor"]
                part.step()
        self.zero_grad()
        return norms[0] if len(norms) == 1 else torch.stack([full_tensor(norm) for norm in norms]).norm()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._named.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return moments and step counts as `parameter|key`, in the order of the model's parameters."""
        states = [part.state for parts in self._parts.values() for part in parts]
        return {
            f"{name}|{key}": value
            for name, parameter in self._named.items()
            for state in states
            if parameter in state
            for key, value in state[parameter].items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back the state of each parameter, by its name; tensors are shared, not copied.

        A group of which there is nothing has not begun to learn.

        Raises:
            KeyError: a parameter's state or a part of it is missing; its argument is `parameter|key`.
        """
        names = {parameter: name for name, parameter in self._named.items()}
        for group in self.groups.values():
            if group.begin and not any(name.startswith(group.prefixes) for name in state):
                continue
            for part in self._parts[group.name]:
                keys = ("momentum_buffer",) if isinstance(part, torch.optim.Muon) else ("step", "exp_avg", "exp_avg_sq")
                for parameter in (each for params in part.param_groups for each in params["params"]):
                    name = names[parameter]
                    if missing := [key for key in keys if key not in state.get(name, {})]:
                        raise KeyError(f"{name}|{missing[0]}")
                    part.state[parameter] = {key: state[name][key] for key in keys}


def _optimisers(named: Mapping[str, nn.Parameter], tags: Tags, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW, Muon or both, with a group for each combination of rule, learning rate and weight decay."""
    found: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        muon = config.name == "muon" and HIDDEN in tags[name] and min(parameter.shape) >= THINNEST
        found.setdefault((muon, ENCODER in tags[name], DECAY in tags[name]), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "muon": muon,
            "lr_factor": config.encoder_lr if encoder else 1.0,
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (muon, encoder, decay), parameters in sorted(found.items(), key=lambda item: item[0])
    ]
    parts: list[torch.optim.Optimizer] = []
    if rest := [group for group in groups if not group["muon"]]:
        parts.append(torch.optim.AdamW(rest, lr=config.lr, betas=config.betas, fused=True))
    if matrices := [group for group in groups if group["muon"]]:
        # scaled to the size of AdamW's updates, so that one learning rate serves both
        scaled: dict[str, Any] = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        parts.append(torch.optim.Muon(matrices, lr=config.lr, momentum=config.momentum, **scaled))
    return parts


def learning_rate(config: OptimizerConfig, step: int, *, batch_size: int, warmup: int, total: int) -> float:
    """Return the learning rate of step 0 <= t < total.

    Linear warm-up peak*(t+1)/(W+1), then cosine decay that reaches `min_lr` when all steps are done, or the peak to the
    end where the schedule is constant.
    """
    peak = config.lr * batch_size / 256 if config.scale_lr else config.lr
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return peak
    floor = min(config.min_lr, peak)
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
