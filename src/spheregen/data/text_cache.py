"""Vectors of captions, encoded once, kept on disk and mapped into memory.

Each different caption is encoded once, whatever the run that asks for it. A cache is a folder that is named by its
captions and their encoder, with `index.json`, which says both, and shards of consecutive captions in their order:

    vectors   (n, D)  float16, of length 1
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from spheregen.data.captions import Captions
from spheregen.data.order import Integers
from spheregen.data.source import digest
from spheregen.distributed import World
from spheregen.errors import DataError
from spheregen.files import cache_folder, parse_json, write_json
from spheregen.networks.text import TextEncoder
from spheregen.tensors import save_tensors

INDEX = "index.json"
FORMAT, VERSION = "spheregen text vectors", 1
SHARD_TEXTS = 4096
_TOGETHER = 64  # texts in one pass: a fixed number, so that vectors do not depend on how many processes share the work


def cached_vectors(
    captions: Captions,
    encoder: TextEncoder,
    *,
    world: World | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Callable[[Integers], Tensor]:
    """Return what gives the vectors (n, D) of captions by their numbers (n,), from a cache that is completed first.

    Args:
        world: the processes that share the work and must call this together; they see the same cache.
        device: where the encoder computes.
        progress: told how many texts are done, of how many.

    Raises:
        DataError: the cache is of other captions or of another encoder, or broken.
    """
    world = world or World()
    texts = [captions.text(number) for number in range(captions.texts)]
    different = sorted(set(texts))
    places = {text: place for place, text in enumerate(different)}
    rows = np.array([places[text] for text in texts], dtype=np.int64)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": json.loads(json.dumps(dict(encoder.identity))),
        "texts": digest(*(text.encode() for text in different)),
        "count": len(different),
    }
    key = digest(json.dumps(about, sort_keys=True).encode())
    folder = cache_folder() / "texts" / key[:24]
    if world.is_first:
        _begin(folder, about)
    world.wait_for_all()
    starts = range(0, len(different), SHARD_TEXTS)
    if isinstance(encoder, nn.Module) and device is not None:
        encoder.to(device)
    for number, start in enumerate(starts):
        if number % world.size == world.rank and _opened(folder, number, key) is None:
            part = different[start : start + SHARD_TEXTS]
            batches = (part[first : first + _TOGETHER] for first in range(0, len(part), _TOGETHER))
            vectors = torch.cat([encoder.encode(batch) for batch in batches])
            save_tensors(_shard(folder, number), {"vectors": vectors.half()}, {"key": key})
        progress(min(start + SHARD_TEXTS, len(different)), len(different))
    world.wait_for_all()
    if isinstance(encoder, nn.Module):
        encoder.cpu()
    shards = [_opened(folder, number, key) for number in range(len(starts))]
    broken = next((number for number, shard in enumerate(shards) if shard is None), None)
    if broken is not None:
        raise DataError(f"{_shard(folder, broken)} is missing or broken; the same command again makes it anew")

    def vectors_of(numbers: Integers) -> Tensor:
        where = rows[numbers].tolist()
        found = [shards[row // SHARD_TEXTS][row % SHARD_TEXTS] for row in where]
        return torch.stack(found).float()

    return vectors_of


def _begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the index of a cache, or check the one that is there."""
    path = folder / INDEX
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(about))
        return
    try:
        there = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete the folder {folder}") from error
    if there != about:
        raise DataError(
            f"{folder} holds vectors of other captions or of another text encoder, and cannot be used; delete it, or "
            "name another place by the variable SPHEREGEN_CACHE"
        )


def _opened(folder: Path, number: int, key: str) -> Tensor | None:
    """Map the vectors of a shard; None where it is missing, broken or of another cache."""
    try:
        with safe_open(_shard(folder, number), "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            vectors: Tensor = file.get_tensor("vectors")
            return vectors
    except (OSError, SafetensorError, ValueError):
        return None


def _shard(folder: Path, number: int) -> Path:
    return folder / f"vectors-{number:05d}.safetensors"
