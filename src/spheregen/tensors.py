"""Files of tensors (safetensors), and what tells their contents apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spheregen.errors import ModelFileError, SphereGenError
from spheregen.files import atomic_path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Raises:
        SphereGenError: the disk is full or the folder cannot be written to.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(contiguous, temporary, metadata=dict(metadata or {}))
    except SafetensorError as error:
        raise SphereGenError(f"cannot write {path}: {first_line(error)}; free space or choose another place") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelFileError: the file is missing, truncated or of another kind.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"cannot read {path}: {first_line(error)}; the file is truncated or of another kind, get it again"
        ) from error


def check_finite(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights with numbers that are not finite: every image of theirs is black or noise.

    Raises:
        ModelFileError: there are some; the first tensor is named.
    """
    for name, tensor in state.items():
        # a sum is cheap, and finite unless a number is not or the sum overflows
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            continue
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise ModelFileError(
                f"{path} holds weights that are not finite (NaN or infinite, the first is {name}): the training "
                "broke down or the file is damaged; take an earlier checkpoint, or train with a lower optimizer.lr"
            )


def weights_hash(state: Mapping[str, Tensor], digits: int = 16) -> str:
    """Return the first hexadecimal digits of the SHA-256 over names, types, shapes and bytes, sorted by name."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if not tensor.is_meta:  # a model that is only estimated has no bytes
            found.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:digits]


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
