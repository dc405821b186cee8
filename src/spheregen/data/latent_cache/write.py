"""Encoding a data set into a latent cache: by several processes, continued after an interruption, in flat memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from spheregen.data.dataset import OnError, check_reading, judge, part_fingerprint
from spheregen.data.decoding import DecodedChunk, Decoder, Work, read_work
from spheregen.data.images import ImageOptions
from spheregen.data.latent_cache.encoding import encode_chunks
from spheregen.data.latent_cache.index import (
    CacheIndex,
    CachePlan,
    Dtype,
    read_plan,
    shard_name,
    write_index,
    write_plan,
)
from spheregen.data.latent_cache.read import LatentCache
from spheregen.data.latent_cache.shards import EncodedBatch, WrittenShard, examine_shard, write_shard
from spheregen.data.order import Integers
from spheregen.data.pool import ordered_map
from spheregen.data.sources import ImageSource
from spheregen.distributed import World
from spheregen.errors import ConfigError, DataError
from spheregen.files import remove_leftovers
from spheregen.progress import QuietReporter, Reporter

if TYPE_CHECKING:
    from spheregen.models.protocol import Tokenizer


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
    shard_images: int = 4096,
    batch_size: int = 64,
    workers: int = 0,
    on_error: OnError = "fail",
    device: torch.device | None = None,
    precision: str = "float32",
    save_tokenizer: Callable[[Path], None] | None = None,
    world: World | None = None,
    reporter: Reporter | None = None,
) -> CacheIndex:
    """Encode every image of a source, and return what the cache holds.

    A shard covers `shard_images` consecutive images of the source, and processes take shards in turn, so the bytes of
    a cache do not depend on how many they are (with the same threads in each: the last bits of a network on a CPU may
    depend on them). All must see the same folder. Shards appear when they are whole; a later call with the same
    settings keeps those and goes on, and one that finds all is done at once. Memory holds a few batches.

    Args:
        tokenizer: on `device`.
        options: of the size and channels of the tokenizer's images.
        out: the folder, which may not exist yet.
        tokenizer_name, tokenizer_fingerprint: recorded; the fingerprint tells tokenizers apart.
        flips: encode the mirror image of each image, too.
        dtype: of the latents on disk.
        batch_size: images that are decoded, and go through the tokenizer, together. It may change when a cache is
            continued; the last bits of latents may depend on it.
        workers: processes that decode, of each process; 0 = this one.
        on_error: images that cannot be read stop everything ("fail") or are left out ("skip").
        device: None = the CPU.
        precision: in which the tokenizer computes: float32, or bf16 by autocast.
        save_tokenizer: called with `out` in the first process, before anything is encoded, to put the tokenizer beside
            its latents.
        world: the processes that share the work; all must call this together.
        reporter: told of images that are done, in the first process.

    Raises:
        ConfigError: an argument is impossible, the source's pictures must not be flipped, or `out` holds something else
            or the cache of other settings, which are named.
        DataError: an image cannot be read, or its latent is not finite.
        SphereGenError: the disk or the device's memory is full.
    """
    check_reading(on_error, workers)
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; give a number of images from 1 up")
    if flips and not source.flips_allowed:
        raise ConfigError(f"flips is on, but mirror images of {source.name} are no {source.name}; leave --flips out")
    if tuple(tokenizer.image_shape) != options.shape:
        raise ConfigError(
            f"the tokenizer {tokenizer_name} takes images of (channels, height, width) {tuple(tokenizer.image_shape)}, "
            f"not {options.shape}; give it those"
        )
    tokens, channels = tokenizer.latent_shape
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
        views=2 if flips else 1,
        precision=precision,
        shard_images=shard_images,
    )
    device = device or torch.device("cpu")
    world, reporter = world or World(), reporter if reporter is not None else QuietReporter()
    keys = world.gather_objects(plan.key)
    if len(set(keys)) > 1:
        raise ConfigError("the processes differ in data, tokenizer or options; start all with the same ones")
    finished: CacheIndex | None = None
    if world.is_first:
        _prepare(out, plan)
        if save_tokenizer is not None:
            save_tokenizer(out)
        finished = _finished(out)
    finished = world.gather_objects(finished)[0]
    if finished is not None:
        judge(finished.skipped, len(source), on_error)
        return finished
    shards = _merged(world, _present(out, plan, range(world.rank, plan.shards, world.size)))
    judge([image for shard in shards.values() for image in shard.bad], len(source), on_error)
    missing = [shard for shard in range(plan.shards) if shard not in shards]
    mine = missing[world.rank :: world.size]
    progress = _Progress(reporter, plan, missing, world)
    decoded = ordered_map(Decoder(source, options), _works(source, plan, mine, batch_size), workers=workers)
    with progress, contextlib.closing(decoded):
        encoded = encode_chunks(tokenizer, _sound(decoded, on_error), plan, device)
        with contextlib.closing(encoded):
            written = _write(out, plan, mine, progress.watch(encoded), source.labels, batch_size)
    source.release()
    shards = _merged(world, shards | written)
    index = _index(source, plan, [shards[shard] for shard in range(plan.shards)])
    if world.is_first:
        _check_shared(out, index)
        write_index(out, index)
    world.wait_for_all()
    return index


def _prepare(out: Path, plan: CachePlan) -> None:
    """Begin a cache, or make sure that the one in the folder is the one that is wanted.

    Raises:
        ConfigError: the folder holds another one, or something else.
        DataError: it holds a cache that is broken.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give --out a folder")
    there = read_plan(out)
    if there is not None:
        if differences := there.differences(plan):
            raise ConfigError(
                f"{out} holds a latent cache of other settings ({'; '.join(differences)}); give another --out, or "
                "delete that folder"
            )
        remove_leftovers(out)
        return
    if out.is_dir():
        remove_leftovers(out)
        if any(out.iterdir()):
            raise ConfigError(f"{out} holds other files and no latent cache; give --out a new folder")
    write_plan(out, plan)


def _finished(out: Path) -> CacheIndex | None:
    try:
        return LatentCache(out).index
    except DataError:  # unfinished, or a shard was lost, which is encoded again
        return None


def _present(out: Path, plan: CachePlan, numbers: Iterable[int]) -> dict[int, WrittenShard]:
    """Those of the shards that are there already and right."""
    found: dict[int, WrittenShard] = {}
    for shard in numbers:
        with contextlib.suppress(ValueError):
            found[shard] = examine_shard(out / shard_name(shard), plan, shard)
    return found


def _merged(world: World, shards: Mapping[int, WrittenShard]) -> dict[int, WrittenShard]:
    """What all processes know of shards."""
    merged: dict[int, WrittenShard] = {}
    for part in world.gather_objects(dict(shards)):
        merged |= part
    return merged


def _batches(plan: CachePlan, shard: int, batch_size: int) -> list[Integers]:
    """Numbers of the images of each batch of a shard."""
    numbers = np.array(plan.covered(shard), dtype=np.int64)
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]


def _works(source: ImageSource, plan: CachePlan, shards: Iterable[int], batch_size: int) -> Iterator[Work]:
    for shard in shards:
        for indices in _batches(plan, shard, batch_size):
            yield read_work(source, indices)
        if not source.remote:  # what it holds for reading would grow; over a network, reading twice costs more
            source.release()


def _sound(chunks: Iterable[DecodedChunk], on_error: OnError) -> Iterator[DecodedChunk]:
    for chunk in chunks:
        if chunk.bad and on_error == "fail":
            raise DataError(chunk.bad[0].reason)
        yield chunk


def _write(
    out: Path,
    plan: CachePlan,
    shards: Iterable[int],
    encoded: Iterator[EncodedBatch],
    labels: torch.Tensor | None,
    batch_size: int,
) -> dict[int, WrittenShard]:
    """Write shards; each is hashed and brought safely to disk in a thread, while the next one is encoded."""
    futures: dict[int, Future[WrittenShard]] = {}
    last: Future[WrittenShard] | None = None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="spheregen-shard") as executor:
        for shard in shards:
            batches = itertools.islice(encoded, len(_batches(plan, shard, batch_size)))
            future = write_shard(out / shard_name(shard), plan, shard, batches, labels, executor)
            if last is not None:
                last.result()  # no more than one is waited for, and its failure is not heard of at the end only
            futures[shard] = last = future
    return {shard: future.result() for shard, future in futures.items()}


def _index(source: ImageSource, plan: CachePlan, shards: Sequence[WrittenShard]) -> CacheIndex:
    bad = [image for shard in shards for image in shard.bad]
    judge(bad, len(source), "skip")
    total = torch.zeros(2, plan.latent_shape[1], dtype=torch.float64)
    for shard in shards:
        total += shard.moments
    numbers = sum(shard.record.count for shard in shards) * plan.views * plan.latent_shape[0]
    mean, square = total / numbers
    return CacheIndex(
        plan=plan,
        data_fingerprint=part_fingerprint(source, np.concatenate([shard.indices for shard in shards])),
        shards=tuple(shard.record for shard in shards),
        skipped=tuple(bad),
        mean=tuple(mean.tolist()),
        std=tuple((square - mean.square()).clamp(min=0).sqrt().tolist()),
    )


def _check_shared(out: Path, index: CacheIndex) -> None:
    """Make sure that the shards of all processes are in the folder.

    Raises:
        ConfigError: the folder is another one on another machine.
    """
    for shard, record in enumerate(index.shards):
        path = out / shard_name(shard)
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise ConfigError(f"{path}, which another process wrote, is not here; give --out a folder that all share")


class _Progress:
    """Tells of images that are done; other processes are thought to be as fast as this one."""

    def __init__(self, reporter: Reporter, plan: CachePlan, missing: Sequence[int], world: World) -> None:
        self._reporter = reporter if world.is_first else QuietReporter()
        self._total = plan.source_images
        self._done = self._first = self._total - sum(len(plan.covered(shard)) for shard in missing)
        self._size = world.size

    def __enter__(self) -> None:
        self._reporter.start(self._total, self._first, 1)

    def __exit__(self, *_: object) -> None:
        self._reporter.stop()

    def watch(self, batches: Iterable[EncodedBatch]) -> Iterator[EncodedBatch]:
        for batch in batches:
            self._done += (len(batch.indices) + len(batch.bad)) * self._size
            self._reporter.step(min(self._done, self._total), None)
            yield batch
