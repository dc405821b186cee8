"""What systems ask of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spheregen.errors import ModelFileError
from spheregen.model_folder import WEIGHTS, load_tensors, read_architecture


def folder_holds(folder: Path, state: Mapping[str, Tensor]) -> bool:
    """Whether a model folder is whole and its weights are these, or hold these among others."""
    try:
        read_architecture(folder)
        saved = load_tensors(folder / WEIGHTS)
    except ModelFileError:
        return False
    return saved.keys() >= state.keys() and all(torch.equal(saved[name], state[name].cpu()) for name in state)
