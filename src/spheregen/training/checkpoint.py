"""Training state on disk: one safetensors file a checkpoint, whole or absent.

It holds the weights, their average, the optimiser's moments and the running means of the log. There is no state of a
random number generator to keep: every draw of a step comes from a generator seeded by (seed, step), and the order of
the data is a function of (seed, step) too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spheregen.errors import ModelFileError
from spheregen.model_folder import load_tensors, save_tensors

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


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, None if there is none.

    Raises:
        ModelFileError: its header cannot be read.
    """
    found = _checkpoints(run)
    if not found:
        return None
    step, path = found[-1]
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return Checkpoint(path, step, json.loads(metadata["run"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelFileError(f"cannot read {path}: it is broken; remove it to continue from the one before") from error


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    meters: Mapping[str, Tensor],
    *,
    about: Mapping[str, Any],
    keep: int,
) -> None:
    """Write the checkpoint after `step` steps, then remove all but the newest `keep`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    tensors |= {f"meter.{name}": tensor for name, tensor in meters.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}|{key}"] = value
    save_tensors(checkpoint_path(run, step), tensors, {"run": json.dumps(about)})
    for _, path in _checkpoints(run)[:-keep]:
        path.unlink(missing_ok=True)


def load_checkpoint(
    checkpoint: Checkpoint, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors back in place; returns the meters.

    Raises:
        ModelFileError: the file is truncated or belongs to another model.
    """
    tensors = load_tensors(checkpoint.path)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "meter": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    try:
        model.load_state_dict(parts["model"])
        average.load_state_dict(parts["average"])
    except RuntimeError as error:
        raise ModelFileError(f"{checkpoint.path} belongs to another model: {str(error).splitlines()[0]}") from error
    for name, parameter in model.named_parameters():
        state: dict[str, Tensor] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = parts["optimizer"].get(f"{name}|{key}")
            if value is None:
                raise ModelFileError(f"{checkpoint.path} lacks the optimiser's {key} of {name}")
            state[key] = value.to(parameter.device)
        optimizer.state[parameter] = state
    return {name: tensor.to(next(model.parameters()).device) for name, tensor in parts["meter"].items()}


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    matches = ((_NAME.match(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)
