"""Files of tensors (safetensors), and what tells their contents apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spheregen.errors import ModelFileError
from spheregen.files import atomic_path

_KINDS = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The types of safetensors in the order in which the package safetensors writes them."""
_MAPPED = 32 << 20  # bytes


class MappedTensors(Mapping[str, Tensor]):
    """Tensors of a file that is mapped anew after some of them were taken: memory holds one part of the file at a time.

    Args:
        read: maps the file and returns its tensors, without reading them.
    """

    def __init__(self, read: Callable[[], Mapping[str, Tensor]]) -> None:
        self._read, self._tensors, self._taken = read, read(), 0

    def __getitem__(self, name: str) -> Tensor:
        if self._taken > _MAPPED:
            self._tensors, self._taken = {}, 0  # lets go of the map before
            self._tensors = self._read()
        tensor = self._tensors[name]
        self._taken += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors to a safetensors file, atomically and one by one, those of floating point in the type `dtype`.

    The file is the one that the package safetensors writes, byte by byte; but that needs all tensors in memory, in
    their final type.

    Raises:
        SphereGenError: the disk is full or the folder cannot be written to.
    """
    kinds = {name: dtype if dtype and each.is_floating_point() else each.dtype for name, each in tensors.items()}
    places = list(_KINDS)
    order = sorted(kinds, key=lambda name: (places.index(kinds[name]), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    end = 0
    for name in order:
        shape = tensors[name].shape
        start, end = end, end + shape.numel() * kinds[name].itemsize
        header[name] = {"dtype": _KINDS[kinds[name]], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name].detach().to("cpu", kinds[name]).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


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
