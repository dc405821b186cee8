"""Reading the weight files that others publish, with one clear error when a file is not what it should be."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from spheregen.errors import ModelFileError
from spheregen.nn.uninitialised import weightless

Net = TypeVar("Net", bound=nn.Module)
_SHOWN = 8


def read_weights(path: Path, *, mapped: bool = False) -> Any:
    """Return what a `.safetensors` file or one written by `torch.save` holds, on the CPU. Code in it is never run.

    Args:
        path: of the file.
        mapped: tensors of a file of torch.save's newer form stay on disk until they are used, as of safetensors.

    Raises:
        ModelFileError: the file is missing, broken, or holds code or objects beside tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is an error below
            mapped = mapped and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except FileNotFoundError as error:
        raise ModelFileError(f"the weight file {path} is missing; put it there") from error
    except Exception as error:  # a broken pickle can raise anything
        raise ModelFileError(f"cannot read the weight file {path}: {_cause(error)}") from error


def read_torch_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file by key, on the CPU.

    Raises:
        ModelFileError: the file is missing, broken, or holds something else than tensors.
    """
    state = read_weights(path)
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
        ModelFileError: a tensor is missing, left over or of another shape; they are listed as the file has them.
    """
    own = net.state_dict()
    assert own.keys() == names.keys(), "the mapping names every tensor of the network"
    known = set(names.values())
    wrong = [
        f"{theirs} {tuple(state[theirs].shape)}, not {tuple(own[mine].shape)}"
        for mine, theirs in names.items()
        if theirs in state and state[theirs].shape != own[mine].shape
    ]
    found = {
        "missing": sorted(known - state.keys()),
        "unexpected": sorted(state.keys() - known),
        "of another shape": sorted(wrong),
    }
    problems = [f"{len(each)} tensors {what}: {listed(each)}" for what, each in found.items() if each]
    if problems:
        raise ModelFileError(f"{origin} does not fit {type(net).__name__}: {'; '.join(problems)}; get the whole file")
    net.load_state_dict({mine: state[theirs] for mine, theirs in names.items()})


def load_published(
    build: Callable[[], Net],
    source: Path | Mapping[str, torch.Tensor],
    names: Callable[[], Mapping[str, str]] | None = None,
    *,
    ignored: str = r"(?!)",
) -> Net:
    """Return a network with published weights, in evaluation mode.

    Args:
        build: makes the network.
        source: the published file, or its tensors.
        names: see `load_renamed`; None: the network has the published names.
        ignored: a pattern of names in the file that the network does without.

    Raises:
        ModelFileError: a tensor is missing, left over or of another shape, or the file cannot be read.
    """
    state = read_torch_state(source) if isinstance(source, Path) else source
    with weightless():
        net = build()
    net.to_empty(device="cpu")
    kept = {name: tensor for name, tensor in state.items() if not re.search(ignored, name)}
    same = {name: name for name in net.state_dict()}
    load_renamed(net, kept, names() if names else same, str(source) if isinstance(source, Path) else "the state")
    return net.eval()


def listed(names: Iterable[str]) -> str:
    """Return the first names, on one line whatever is in them, and how many more there are."""
    every = [name[:200] if name.isprintable() else repr(name[:200]) for name in names]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def _cause(error: Exception) -> str:
    """Return why reading failed, in one line; torch's own text recommends to load the file in the unsafe way."""
    text = str(error)
    if "Weights only load failed" in text:
        unsafe = re.search(r"GLOBAL ([\w.]+)", text)
        held = f"code or objects ({unsafe[1]})" if unsafe else "more than tensors, or is damaged"
        return f"it holds {held}, and nothing of it was executed; get a file of tensors alone"
    first = (text.strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    return f"{first if ' ' in first else 'its data are damaged'}; delete it and get it again"
