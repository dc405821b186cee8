"""Shards of a latent cache: safetensors files that are written batch by batch, and mapped when they are read.

    latents   (n, views, N, d)  bf16 or float32
    indices   (n,)  int64, numbers of the images in the source, ascending
    labels    (n,)  int64 class ids; only where the source has classes
    moments   (2, d)  float64, sum and sum of squares of each channel over n, views and N
    skipped   (m,)  uint8, JSON in UTF-8: the images that the shard covers and that could not be read; if there are any

The header's metadata carry the key of the cache's plan, and the shard's number, so that a shard is never taken for one
of another cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from spheregen.data.decoding import BadImage
from spheregen.data.latent_cache.index import CachePlan, ShardRecord
from spheregen.data.order import Integers
from spheregen.files import atomic_path

TORCH_DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
_TAGS = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_HEADER = 2048  # bytes that are enough for the header's text
_PAGE = 4096  # latents begin at a multiple of it


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Latents of some images, on the CPU."""

    indices: Integers  # (n,) numbers in the source
    latents: torch.Tensor  # (n, views, N, d) in the type of the cache
    moments: torch.Tensor  # (2, d) float64, see above
    bad: tuple[BadImage, ...]  # images beside these n that could not be read


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What the index needs to know of a shard."""

    record: ShardRecord
    indices: Integers  # (n,)
    moments: torch.Tensor  # (2, d) float64
    bad: tuple[BadImage, ...]


@dataclass(frozen=True, kw_only=True)
class MappedShard:
    """A shard that is open for reading; of its latents, only the parts that are used are read from disk."""

    latents: torch.Tensor  # (n, views, N, d)
    indices: torch.Tensor  # (n,) int64
    labels: torch.Tensor | None  # (n,) int64
    moments: torch.Tensor  # (2, d) float64
    bad: tuple[BadImage, ...]


def write_shard(
    path: Path,
    plan: CachePlan,
    shard: int,
    batches: Iterable[EncodedBatch],
    labels: torch.Tensor | None,
    executor: Executor,
) -> Future[WrittenShard]:
    """Write a shard as its batches come, and leave hashing and fsync to the executor; then it appears under its name.

    Args:
        labels: of all images of the source.

    Raises:
        SphereGenError: the disk is full; also from the future.
    """
    indices = [np.empty(0, dtype=np.int64)]
    moments = torch.zeros(2, plan.latent_shape[1], dtype=torch.float64)
    bad: list[BadImage] = []
    start = _latents_start(plan, shard)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        with temporary.open("wb") as file:
            file.seek(start)
            for batch in batches:
                _put(file, batch.latents)
                indices.append(batch.indices)
                moments += batch.moments
                bad.extend(batch.bad)
            numbers = np.concatenate(indices)
            chosen = torch.from_numpy(numbers)
            first = {"moments": moments, "indices": chosen}
            if labels is not None:
                first["labels"] = labels[chosen]
            last = {}
            if bad:
                text = json.dumps([dataclasses.asdict(image) for image in bad]).encode()
                last["skipped"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
                _put(file, last["skipped"])
            shape = (len(numbers), plan.views, *plan.latent_shape)
            latents = torch.empty(shape, dtype=TORCH_DTYPES[plan.dtype], device="meta")
            header = _header({**first, "latents": latents, **last}, plan, shard)
            file.seek(0)
            room = start - 8 - sum(tensor.nbytes for tensor in first.values())
            file.write(room.to_bytes(8, "little") + header.ljust(room))
            for tensor in first.values():
                _put(file, tensor)
        rest = stack.pop_all()
    return executor.submit(_finish, rest, temporary, numbers, moments, tuple(bad))


def open_shard(path: Path, plan: CachePlan, shard: int) -> MappedShard:
    """Map a shard.

    Raises:
        ValueError: it is missing, broken, or no such shard of such a cache. The message says which, without the path.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
    except FileNotFoundError as error:
        raise ValueError("it is missing") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"it is broken: {' '.join(str(error).split())}") from error
    if metadata.get("key") != plan.key:
        raise ValueError("it belongs to another cache")
    if metadata.get("shard") != str(shard):
        raise ValueError(f"it is shard {metadata.get('shard')}")
    try:
        mapped = MappedShard(
            latents=tensors["latents"],
            indices=tensors["indices"],
            labels=tensors["labels"] if plan.class_names else None,
            moments=tensors["moments"],
            bad=_bad(tensors["skipped"]) if "skipped" in tensors else (),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"it is broken: {error}") from error
    _check(mapped, plan, shard)
    return mapped


def examine_shard(path: Path, plan: CachePlan, shard: int) -> WrittenShard:
    """What the index needs to know of a shard that is there already; it is read from end to end.

    Raises:
        ValueError: as `open_shard`.
    """
    mapped = open_shard(path, plan, shard)
    record = ShardRecord(count=len(mapped.indices), bytes=path.stat().st_size, sha256=file_sha256(path))
    # copies: what is mapped would vanish if the file were replaced
    return WrittenShard(
        record=record, indices=mapped.indices.numpy().copy(), moments=mapped.moments.clone(), bad=mapped.bad
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _latents_start(plan: CachePlan, shard: int) -> int:
    """Where latents begin, with room before them for the header and what is small: how many images there are, and so
    how large that is, shows at the end only. The header is padded to fill the rest, as the format allows."""
    small = 2 * 8 * plan.latent_shape[1] + 2 * 8 * len(plan.covered(shard))
    return -(-(_HEADER + small) // _PAGE) * _PAGE


def _header(tensors: dict[str, torch.Tensor], plan: CachePlan, shard: int) -> bytes:
    """The header of a safetensors file whose tensors follow one another in this order."""
    values: dict[str, object] = {"__metadata__": {"key": plan.key, "shard": str(shard)}}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.nbytes
        values[name] = {"dtype": _TAGS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(values).encode()
    assert len(text) <= _HEADER - 8
    return text


def _put(file: BinaryIO, tensor: torch.Tensor) -> None:
    if tensor.numel():  # torch cannot view nothing as bytes
        file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _finish(
    rest: contextlib.ExitStack, temporary: Path, indices: Integers, moments: torch.Tensor, bad: tuple[BadImage, ...]
) -> WrittenShard:
    with rest:
        record = ShardRecord(count=len(indices), bytes=temporary.stat().st_size, sha256=file_sha256(temporary))
    return WrittenShard(record=record, indices=indices, moments=moments, bad=bad)


def _bad(text: torch.Tensor) -> tuple[BadImage, ...]:
    return tuple(BadImage(**image) for image in json.loads(text.numpy().tobytes()))


def _check(mapped: MappedShard, plan: CachePlan, shard: int) -> None:
    count = len(mapped.indices)
    found = (mapped.latents.dtype, tuple(mapped.latents.shape))
    wanted = (TORCH_DTYPES[plan.dtype], (count, plan.views, *plan.latent_shape))
    if found != wanted:
        raise ValueError(f"it holds latents {found[0]} {found[1]}, not {wanted[0]} {wanted[1]}")
    if mapped.labels is not None and mapped.labels.shape != (count,):
        raise ValueError(f"it holds {len(mapped.labels)} labels of {count} images")
    numbers = np.sort(np.concatenate([mapped.indices.numpy(), [image.index for image in mapped.bad]]))
    if not np.array_equal(numbers, np.array(plan.covered(shard))):
        raise ValueError("it does not hold the images that it should")
