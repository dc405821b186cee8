"""Training state on disk: one safetensors file a checkpoint, whole or absent.

It holds the weights, their average, the optimiser's moments and the running means of the log. There is no state of a
random number generator to keep: every draw of a step comes from a generator seeded by (seed, step), and the order of
the data is a function of (seed, step) too. The file is the same whatever the number of processes that wrote it, and
any number of them can go on from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spheregen.distributed import World, assign, distribute_like, full_tensor
from spheregen.errors import ModelFileError
from spheregen.family.objective import Objective
from spheregen.files import parse_json
from spheregen.tensors import first_line, load_tensors, save_tensors
from spheregen.training.optimizer import Optimizer

FOLDER = "state"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file."""

    path: Path
    step: int
    """Optimiser steps that were done."""
    run: Mapping[str, Any]
    """What the run was: its recipe, data fingerprint and whatever else decides the weights."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Return where the checkpoint after `step` steps lies."""
    return run / FOLDER / f"step-{step:09d}.safetensors"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints of a run folder with their steps, the oldest first."""
    paths = sorted((run / FOLDER).glob("step-" + "[0-9]" * 9 + ".safetensors"))
    return [(int(path.stem.removeprefix("step-")), path) for path in paths]


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run folder, None if there is none.

    Raises:
        ModelFileError: its header cannot be read.
    """
    found = checkpoints(run)
    if not found:
        return None
    step, path = found[-1]
    try:
        with safe_open(path, framework="pt") as file:
            return Checkpoint(path, step, parse_json(file.metadata()["run"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"cannot read {path}: it is broken; remove it to continue from the one before") from error


def training_state(
    model: nn.Module,
    average: nn.Module,
    optimizer: Optimizer,
    meters: Mapping[str, Tensor],
    world: World,
    beside: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Return all tensors of a run, whole and on the CPU, by name: what a checkpoint holds.

    `beside` is the state of the objective. Every process must call it together; only the first gets anything. Sharded
    tensors are put together one by one.
    """
    parts = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "meter": meters,
        "optimizer": optimizer.state(),
        "beside": beside,
    }
    state = {}
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            complete = full_tensor(tensor)
            if world.is_first:
                state[f"{part}.{name}"] = complete.detach().cpu()
    return state


def save_checkpoint(run: Path, step: int, state: Mapping[str, Tensor], *, about: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint after `step` steps, then remove all but the newest `keep`."""
    save_tensors(checkpoint_path(run, step), state, {"run": json.dumps(about)})
    for _, path in checkpoints(run)[:-keep]:
        path.unlink(missing_ok=True)


def load_checkpoint(
    checkpoint: Checkpoint,
    model: nn.Module,
    average: nn.Module,
    optimizer: Optimizer,
    objective: Objective | None = None,
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors back in place, in shards where the model is sharded; returns the meters.

    The objective gets back what is its own.

    Raises:
        ModelFileError: the file is truncated or belongs to another model.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "meter": {}, "optimizer": {}, "beside": {}}
    for name, tensor in load_tensors(checkpoint.path).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    for network, theirs in ((model, parts["model"]), (average, parts["average"])):
        ours = network.state_dict()
        common = ours.keys() & theirs.keys()
        wrong = {name for name in common if ours[name].shape != theirs[name].shape} | (ours.keys() ^ theirs.keys())
        if wrong:
            raise ModelFileError(
                f"{checkpoint.path} belongs to another model: {len(wrong)} tensors differ, the first is {min(wrong)}"
            )
        for name, tensor in ours.items():
            assign(tensor, theirs[name])
    parameters = dict(model.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        parameter, _, key = name.rpartition("|")
        if parameter in parameters:
            target = parameters[parameter]
            sharded = value.shape == target.shape and key != "step"
            placed = distribute_like(value, target) if sharded else value.to(target.device)
            moments.setdefault(parameter, {})[key] = placed
    try:
        optimizer.load_state(moments)
    except KeyError as error:
        raise ModelFileError(f"{checkpoint.path} lacks {error.args[0]} of the optimiser") from error
    if objective is not None:
        try:
            objective.load_state(parts["beside"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelFileError(
                f"{checkpoint.path} does not fit what learns beside the model ({first_line(error)})"
            ) from error
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in parts["meter"].items()}
