"""Encoding a data set into a latent cache: by one or several processes, continued after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from spheregen.data.captions import Captions
from spheregen.data.decoding import (
    BadImage,
    DecodedChunk,
    OnError,
    check_reading,
    decode_chunks,
    judge,
    part_fingerprint,
)
from spheregen.data.images import to_model_range
from spheregen.data.latent_cache import (
    CAPTIONS,
    INDEX,
    TORCH_DTYPES,
    CacheIndex,
    CachePlan,
    Dtype,
    ShardRecord,
    file_sha256,
    open_shard,
    read_index,
    shard_name,
    skipped_images,
    write_index,
)
from spheregen.data.loader import to_device
from spheregen.data.order import Integers
from spheregen.data.source import ImageSource
from spheregen.devices import autocast, own_defaults
from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.files import atomic_path, remove_leftovers
from spheregen.lock import LOCK
from spheregen.pixels import ImageOptions
from spheregen.progress import QuietReporter, Reporter
from spheregen.tensors import save_tensors

if TYPE_CHECKING:
    from spheregen.protocol import Tokenizer

SHARD_BYTES, SHARD_IMAGES = 128 << 20, 4096  # a shard is in memory while it is made, and is lost if that is interrupted


@own_defaults()
def write_latent_cache(
    tokenizer: Tokenizer,
    source: ImageSource,
    options: ImageOptions,
    out: Path,
    *,
    tokenizer_name: str,
    tokenizer_fingerprint: str,
    flips: bool = False,
    dtype: Dtype = "bf16",
    batch_size: int = 64,
    workers: int = 0,
    on_error: OnError = "fail",
    device: torch.device | None = None,
    precision: str = "float32",
    save_tokenizer: Callable[[Path], None] | None = None,
    captions: Captions | None = None,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> CacheIndex:
    """Encode every image of a source, and return the index of the cache.

    Processes take shards in turn, so the bytes of a cache do not depend on how many they are (with the same threads in
    each). All must see the same folder. Shards appear when they are whole; a later call with the same settings keeps
    those that are there and undamaged, and encodes the others.

    Args:
        tokenizer: on `device`.
        options: of the size and channels of the tokenizer's images.
        flips: encode the mirror image of each image, too.
        dtype: of the latents on disk.
        batch_size: of images that go through the tokenizer together. It may change when a cache is continued; the last
            bits of latents may depend on it.
        precision: in which the tokenizer computes: float32, or bf16 by autocast.
        save_tokenizer: called with `out` in the first process, before anything is encoded, to put the tokenizer beside
            its latents.
        captions: of the images, to be kept beside their latents.
        world: the processes that share the work; all must call this together.

    Raises:
        ConfigError: an argument is impossible, or `out` holds something else or the cache of other settings.
        DataError: an image cannot be read, or its latent is not finite.
        SphereGenError: the disk or the device's memory is full.
    """
    check_reading(on_error, workers)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; give a number of images from 1 up")
    if flips and not source.flips_allowed:
        raise ConfigError(f"flips is on, but mirror images of {source.name} are no {source.name}; leave --flips out")
    if (shape := tuple(tokenizer.image_shape)) != options.shape:
        raise ConfigError(f"{tokenizer_name} takes images of (channels, height, width) {shape}, not {options.shape}")
    tokens, channels = tokenizer.latent_shape
    views = 2 if flips else 1
    image_bytes = views * tokens * channels * (4 if dtype == "float32" else 2)
    plan = CachePlan(
        tokenizer_name=tokenizer_name,
        tokenizer_fingerprint=tokenizer_fingerprint,
        source_name=source.name,
        split=source.split,
        source_fingerprint=source.fingerprint,
        source_images=len(source),
        class_names=source.class_names,
        image=options,
        latent_shape=(tokens, channels),
        dtype=dtype,
        views=views,
        precision=precision,  # type: ignore[arg-type]  # checked there
        shard_images=max(1, min(SHARD_IMAGES, SHARD_BYTES // image_bytes)),
    )
    world = world or World()
    if len(set(world.gather_objects(plan.key))) > 1:
        raise ConfigError("the processes differ in data, tokenizer or options; start all with the same ones")
    begun = _begin(out, plan, source.earlier_fingerprint) if world.is_first else None
    if world.is_first and save_tokenizer is not None:
        save_tokenizer(out)
    if world.is_first and captions is not None:
        save_tensors(out / CAPTIONS, captions.tensors)
    begun = cast(CacheIndex, world.gather_objects(begun)[0])
    plan = begun.plan
    shards = _joined(world, _present(out, begun, range(world.rank, plan.shards, world.size)))
    judge([image for _, skipped in shards.values() for image in skipped], len(source), on_error)
    if missing := [shard for shard in range(plan.shards) if shard not in shards]:
        reporter = reporter if reporter is not None and world.is_first else QuietReporter()
        done = len(source) - sum(len(plan.covered(shard)) for shard in missing)
        reporter.start(len(source), done, 1)
        mine = missing[world.rank :: world.size]
        numbers = {shard: np.array(plan.covered(shard), dtype=np.int64) for shard in mine}
        batches = {shard: np.split(n, range(batch_size, len(n), batch_size)) for shard, n in numbers.items()}
        decoded = decode_chunks(source, options, itertools.chain(*batches.values()), workers)
        try:
            with contextlib.closing(decoded):
                for shard in mine:
                    parts: list[tuple[Integers, Tensor]] = []
                    skipped: list[BadImage] = []
                    for chunk in itertools.islice(decoded, len(batches[shard])):
                        if chunk.bad and on_error == "fail":
                            raise DataError(chunk.bad[0].reason)
                        skipped += chunk.bad
                        parts.append(_encode(tokenizer, chunk, plan, device or torch.device("cpu")))
                        done += len(chunk.indices) * world.size  # the others are thought to be as fast as this one
                        reporter.step(min(done, len(source)), None)
                    shards[shard] = _save(out / shard_name(shard), plan, parts, skipped, source.labels)
        finally:
            reporter.stop()
            source.release()
        shards = _joined(world, shards)
    index = _finish(out, source, plan, [shards[shard] for shard in range(plan.shards)]) if world.is_first else None
    return cast(CacheIndex, world.gather_objects(index)[0])


def _begin(out: Path, plan: CachePlan, earlier: str | None) -> CacheIndex:
    """Begin a cache, or return the index of the one in the folder if it is the one that is wanted.

    Args:
        earlier: the fingerprint that a version before gave to the images.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give --out a folder")
    remove_leftovers(out)
    if (begun := out / "unfinished.json").exists() and not (out / INDEX).exists():  # its name in earlier versions
        begun.rename(out / INDEX)
    there = read_index(out)
    if there is None:
        if out.is_dir() and any(path.name != LOCK for path in out.iterdir()):
            raise ConfigError(f"{out} holds other files and no latent cache; give --out a new folder")
        there = CacheIndex(plan=plan)
        write_index(out, there)
    wanted = dataclasses.replace(plan, shard_images=there.plan.shard_images)
    if there.plan.source_fingerprint == earlier:
        wanted = dataclasses.replace(wanted, source_fingerprint=earlier)
    if differences := there.plan.differences(wanted):
        raise ConfigError(f"{out} holds a cache of other settings ({'; '.join(differences)}); give another --out")
    return there


_Shard = tuple[ShardRecord, list[BadImage]]  # one that is on disk, and the images that it covers and lacks


def _present(out: Path, begun: CacheIndex, shards: Iterable[int]) -> dict[int, _Shard]:
    """Find those of the shards that are there already and right; a finished index tells how they must hash."""
    found: dict[int, _Shard] = {}
    for shard in shards:
        with contextlib.suppress(ValueError):
            tensors, path = open_shard(out, begun.plan, shard), out / shard_name(shard)
            record = ShardRecord(count=len(tensors["indices"]), bytes=path.stat().st_size, sha256=file_sha256(path))
            if len(begun.shards) != begun.plan.shards or begun.shards[shard] == record:
                found[shard] = record, skipped_images(tensors)
    return found


def _joined(world: World, shards: Mapping[int, _Shard]) -> dict[int, _Shard]:
    return {shard: known for part in world.gather_objects(dict(shards)) for shard, known in part.items()}


@torch.inference_mode()
def _encode(
    tokenizer: Tokenizer, chunk: DecodedChunk, plan: CachePlan, device: torch.device
) -> tuple[Integers, Tensor]:
    """Return the numbers (n,) of the good images of a chunk, and their latents (n, views, N, d) as they are stored.

    Each view goes through the tokenizer by itself.
    """
    indices, pixels = chunk.good()
    wanted, dtype = (len(indices), plan.views, *plan.latent_shape), TORCH_DTYPES[plan.dtype]
    if not len(indices):
        return indices, torch.empty(wanted, dtype=dtype, device="cpu")
    try:
        images = to_model_range(to_device(torch.from_numpy(pixels), device))
        with autocast(device, plan.precision):
            views = [tokenizer.encode(x) for x in (images, images.flip(-1))[: plan.views]]
        latents = torch.stack([view.to(dtype) for view in views], dim=1).cpu()
    except torch.OutOfMemoryError as error:
        raise SphereGenError(f"{len(indices)} images do not fit into {device}; use a smaller --batch-size") from error
    if latents.shape != wanted:
        found = tuple(latents.shape[2:])
        raise SphereGenError(f"the tokenizer gives latents {found}, not {plan.latent_shape} as it says; correct it")
    finite = torch.isfinite(latents).flatten(1).all(dim=1)
    if not finite.all():
        bad = f"image {indices[int(finite.int().argmin())]} of {plan.source_name}"
        raise DataError(f"{plan.tokenizer_name} gives infinite latents for {bad}; look at it, or use --dtype float32")
    return indices, latents


def _save(
    path: Path,
    plan: CachePlan,
    parts: Sequence[tuple[Integers, Tensor]],
    skipped: list[BadImage],
    labels: Tensor | None,
) -> _Shard:
    indices = torch.from_numpy(np.concatenate([numbers for numbers, _ in parts]))
    tensors = {"latents": torch.cat([latents for _, latents in parts]), "indices": indices}
    if labels is not None:
        tensors["labels"] = labels[indices]
    if skipped:
        text = json.dumps([dataclasses.asdict(image) for image in skipped]).encode()
        tensors["skipped"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    data = safetensors.torch.save(tensors, {"key": plan.key})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    record = ShardRecord(count=len(indices), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return record, skipped


def _finish(out: Path, source: ImageSource, plan: CachePlan, shards: Sequence[_Shard]) -> CacheIndex:
    skipped = [image for _, lacking in shards for image in lacking]
    judge(skipped, len(source), "skip")
    kept = np.setdiff1d(np.arange(len(source), dtype=np.int64), [image.index for image in skipped])
    index = CacheIndex(
        plan=plan,
        data_fingerprint=part_fingerprint(source, kept, earlier=plan.source_fingerprint != source.fingerprint),
        shards=tuple(record for record, _ in shards),
        skipped=tuple(skipped),
    )
    for number, record in enumerate(index.shards):
        path = out / shard_name(number)
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise ConfigError(f"{path}, which another process wrote, is not here; give --out a folder that all share")
    write_index(out, index)
    return index
