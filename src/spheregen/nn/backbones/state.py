"""Reading the weight files that others publish, with one clear error when a file is not what it should be."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from spheregen.errors import ModelFileError


def read_torch_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file written by `torch.save`, by key, on the CPU. Code in the file is never run.

    Raises:
        ModelFileError: the file is missing, broken, or holds something else than tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelFileError(f"the weight file {path} is missing; put it there") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"cannot read the weight file {path} ({reason}); delete it and fetch it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelFileError(f"{path} is not a table of tensors; delete it and fetch the published file again")
    return dict(state)


def load_renamed(net: nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str], origin: str) -> None:
    """Copy `state` into `net`, strictly.

    Args:
        net: the network to fill.
        state: tensors under the names of the published file.
        names: published name of each tensor of `net`, by its own name: exactly the keys of both sides.
        origin: the file, for the message.

    Raises:
        ModelFileError: a tensor is missing, left over or of another shape.
    """
    problems = []
    own = net.state_dict()
    assert own.keys() == names.keys(), "the mapping names every tensor of the network"
    if missing := [name for name in names.values() if name not in state]:
        problems.append(f"{len(missing)} missing tensors such as {missing[0]!r}")
    known = set(names.values())
    if unexpected := [name for name in state if name not in known]:
        problems.append(f"{len(unexpected)} unexpected tensors such as {unexpected[0]!r}")
    for mine, theirs in names.items():
        if theirs in state and state[theirs].shape != own[mine].shape:
            shapes = f"{tuple(state[theirs].shape)}, not {tuple(own[mine].shape)}"
            problems.append(f"{theirs!r} is of shape {shapes}")
            break
    if problems:
        kind = type(net).__name__
        raise ModelFileError(f"{origin} does not fit {kind}: {'; '.join(problems)}; give the published file")
    net.load_state_dict({mine: state[theirs] for mine, theirs in names.items()})
