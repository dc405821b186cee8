"""Training state on disk: one safetensors file a checkpoint, whole or absent.

It holds the weights, their average, the optimiser's moments and the running means of the log. There is no state of a
random number generator to keep: every draw of a step comes from a generator seeded by (seed, step), and the order of
the data is a function of (seed, step) too. The file is the same whatever the number of processes that wrote it, and
any number of them can go on from it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spheregen.distributed import World, assign, distribute_like, full_tensor
from spheregen.errors import ModelFileError
from spheregen.tensors import load_tensors, save_tensors
from spheregen.training.optimizer import Optimizer

FOLDER = "state"
_NAME = re.compile(r"^step-(\d{9})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file."""

    path: Path
    step: int
    """Optimiser steps that were done."""
    run: Mapping[str, Any]
    """What the run was: its recipe, data fingerprint and whatever else decides the weights."""


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run / FOLDER / f"step-{step:09d}.safetensors"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run folder with their steps, the oldest first."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    matches = ((_NAME.match(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, None if there is none.

    Raises:
        ModelFileError: its header cannot be read.
    """
    found = checkpoints(run)
    if not found:
        return None
    step, path = found[-1]
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return Checkpoint(path, step, json.loads(metadata["run"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"cannot read {path}: it is broken; remove it to continue from the one before") from error


def training_state(
    model: nn.Module, average: nn.Module, optimizer: Optimizer, meters: Mapping[str, Tensor], world: World
) -> dict[str, Tensor]:
    """All tensors of a run, whole and on the CPU, by name: what a checkpoint holds.

    Every process must call it together; only the first gets anything. Sharded tensors are put together one by one.
    """
    tensors: Iterable[tuple[str, Tensor]] = itertools.chain(
        ((f"model.{name}", tensor) for name, tensor in model.state_dict().items()),
        ((f"average.{name}", tensor) for name, tensor in average.state_dict().items()),
        ((f"meter.{name}", tensor) for name, tensor in meters.items()),
        ((f"optimizer.{name}", tensor) for name, tensor in optimizer.state().items()),
    )
    state = {}
    for name, tensor in tensors:
        complete = full_tensor(tensor)
        if world.is_first:
            state[name] = complete.detach().cpu()
    return state


def save_checkpoint(run: Path, step: int, state: Mapping[str, Tensor], *, about: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint after `step` steps, then remove all but the newest `keep`."""
    save_tensors(checkpoint_path(run, step), state, {"run": json.dumps(about)})
    for _, path in checkpoints(run)[:-keep]:
        path.unlink(missing_ok=True)


def load_checkpoint(
    checkpoint: Checkpoint, model: nn.Module, average: nn.Module, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors back in place, in shards where the model is sharded; returns the meters.

    Raises:
        ModelFileError: the file is truncated or belongs to another model.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "meter": {}, "optimizer": {}}
    for name, tensor in load_tensors(checkpoint.path).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    for network, part in ((model, "model"), (average, "average")):
        ours = network.state_dict()
        wrong = sorted(
            {name for name in ours.keys() & parts[part].keys() if ours[name].shape != parts[part][name].shape}
            | (ours.keys() ^ parts[part].keys())
        )
        if wrong:
            raise ModelFileError(
                f"{checkpoint.path} belongs to another model: {len(wrong)} tensors differ, the first is {wrong[0]}"
            )
        for name, tensor in ours.items():
            assign(tensor, parts[part][name])
    parameters = dict(model.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        parameter, _, key = name.rpartition("|")
        if parameter in parameters:
            target = parameters[parameter]
            is_moment = value.shape == target.shape and key != "step"
            moments.setdefault(parameter, {})[key] = (
                distribute_like(value, target) if is_moment else value.to(target.device)
            )
    try:
        optimizer.load_state(moments)
    except KeyError as error:
        parameter, _, key = str(error.args[0]).rpartition("|")
        raise ModelFileError(f"{checkpoint.path} lacks the optimiser's {key} of {parameter}") from error
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in parts["meter"].items()}
