"""Training batches, by step: the same for any start, any number of workers, cached or read from disk each time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from spheregen.data.dataset import (
    OnError,
    Progress,
    check_reading,
    judge,
    load_all,
    part_fingerprint,
    usable_indices,
)
from spheregen.data.dataset import validate as find_bad
from spheregen.data.decoding import BadImage, DecodedChunk, Decoder, Work, read_work
from spheregen.data.images import ImageOptions, to_model_range
from spheregen.data.order import BlockOrder, Integers, OrderedBatch, SampleOrder, flip_draws
from spheregen.data.pool import ordered_map
from spheregen.data.sources import ImageSource
from spheregen.data.windows import read_scattered, read_windows
from spheregen.errors import ConfigError, DataError
from spheregen.files import write_json

Shuffle = Literal["auto", "full", "blocks"]
Gather = Callable[[object], list[Any]]

_REMEMBERED_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one training step sees (one rank's share)."""

    inputs: torch.Tensor  # float32: images (B, C, S, S) in [-1, 1], or latents (B, N, d)
    labels: torch.Tensor | None  # (B,) int64, or None
    indices: torch.Tensor  # (B,) int64 on the CPU, numbers in the source
    step: int  # the global step


class TrainingBatches:
    """The batches of steps `start_step` .. `steps`-1; iterate, or ask for any one with `batch(step)`.

    If the decoded pictures fit in `cache_bytes` they are decoded once, here; otherwise they are decoded while training
    runs, `workers` processes ahead of it. Either way every batch is the same, bit for bit, for any number of workers,
    any `start_step` and any division over ranks. Bad pictures are found here: fatal, or left out for good, so that the
    order is fixed before the first step.

    Args:
        batch_size: over all ranks together; it may exceed the number of pictures.
        steps: length of the whole run, not of what is left of it.
        seed: of the order and the flips.
        flips: mirror each picture left to right with probability 0.5, drawn anew in each epoch.
        on_error: pictures that cannot be read are fatal ("fail") or left out ("skip").
        workers: processes that decode; 0 = this one.
        cache_bytes: the most memory that decoded pictures may take in each process.
        start_step: where to continue.
        rank, world_size: this process's share of each batch.
        progress: called while pictures are decoded or checked here.
        shuffle: "full": every epoch is a permutation of all pictures; "blocks": of blocks, and within windows of about
            64 MiB (see `BlockOrder`), which reads the data in runs; "auto": "blocks" where the source says that
            random access is slow, a property of the data alone.
        validate: decode every picture once before the first step, unless they are cached, which does the same. None:
            unless they come over a network. Without it a bad picture is fatal when it is met.
        prefetch: batches that each worker decodes ahead.
        device: where images and labels of the batches shall be; None = the CPU. On an accelerator the cache moves
            there if it takes at most a quarter of the free memory; else batches travel as uint8 from pinned memory.
        gather: all-gathers a picklable object over ranks, in rank order; with it they divide the validation. All ranks
            must then build their batches at the same time.
        remembered: a JSON file in which the outcome of the validation is kept, so that a run that is continued does
            not repeat it.

    Raises:
        DataError: bad pictures, see `load_all`; a worker process died; blocks cannot be read.
        ConfigError: an argument is impossible, or the source's pictures must not be flipped.
    """

    def __init__(
        self,
        source: ImageSource,
        options: ImageOptions,
        *,
        batch_size: int,
        steps: int,
        seed: int = 0,
        flips: bool = False,
        on_error: OnError = "fail",
        workers: int = 0,
        cache_bytes: int = 2 << 30,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        progress: Progress | None = None,
        shuffle: Shuffle = "auto",
        validate: bool | None = None,
        prefetch: int = 2,
        device: torch.device | None = None,
        gather: Gather | None = None,
        remembered: Path | None = None,
    ) -> None:
        check_reading(on_error, workers)
        if flips and not source.flips_allowed:
            raise ConfigError(
                f"flips is on, but mirror images of {source.name} are no {source.name}; set data.flips=false"
            )
        if not 0 <= start_step <= steps:
            raise ConfigError(f"start_step is {start_step}; with {steps} steps it is from 0 to {steps}")
        if shuffle not in get_args(Shuffle):
            raise ConfigError(f"shuffle is {shuffle!r}; choose one of {', '.join(get_args(Shuffle))}")
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; give a number of batches from 1 up")
        blocks = (
            source.blocks() if shuffle == "blocks" or (shuffle == "auto" and source.random_access_is_slow) else None
        )
        if shuffle == "blocks" and blocks is None:
            raise ConfigError(f"{source.name} is not stored in blocks; use data.shuffle=full")
        self.source = source
        self.options = options
        self.steps = steps
        self.start_step = start_step
        self.flips = flips
        self.seed = seed
        self.workers = workers
        self.prefetch = prefetch
        self.device = device if device is not None else torch.device("cpu")
        self.cached = len(source) * options.bytes_per_image <= cache_bytes
        self.skipped: tuple[str, ...] = ()  # one line for each picture left out
        self._blocks = blocks
        self._cache: torch.Tensor | None = None  # (kept, C, S, S) uint8
        if self.cached:
            loaded = load_all(source, options, on_error=on_error, workers=workers, progress=progress)
            self._cache, self.skipped = loaded.images, loaded.skipped
            usable = loaded.indices.numpy()
        else:
            if validate is None:
                validate = not source.remote or on_error == "skip"
            if not validate and on_error == "skip":
                raise ConfigError(
                    "bad images can be skipped only if all are tried before the first step: leave data.check on, or "
                    "use data.on_error=fail"
                )
            bad: tuple[BadImage, ...] = ()
            if validate:
                check = _Check(source, options, workers, progress, rank, world_size, gather, remembered)
                bad = check.bad(on_error)
            self.skipped = tuple(image.reason for image in bad)
            usable = usable_indices(source, bad)
        self.order = _order(usable, blocks, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        self.count = len(usable)  # pictures in an epoch
        self.fingerprint = part_fingerprint(source, usable)  # of the data, without what was skipped
        if self._cache is not None:
            self._places = torch.full((len(source),), -1, dtype=torch.int64)  # number in the source -> row of the cache
            self._places[torch.from_numpy(usable)] = torch.arange(self.count)
            if self._cache.nbytes <= free_memory(self.device) // 4:
                self._cache = self._cache.to(self.device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty = unlabelled."""
        return self.source.class_names

    def __len__(self) -> int:
        """Steps left."""
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.steps)
        if self._cache is not None:
            for step in steps:
                yield self.batch(step)
            return
        taken: deque[OrderedBatch] = deque()  # batches that are in work
        works = self._works(steps, taken)
        decoder = Decoder(self.source, self.options)
        chunks = ordered_map(decoder, works, workers=self.workers, prefetch=self.prefetch)
        with contextlib.closing(works), contextlib.closing(chunks):
            for step, chunk in zip(steps, chunks, strict=True):
                yield self._finish(step, taken.popleft(), _sound(chunk))

    def batch(self, step: int) -> Batch:
        """The batch of any step >= 0, computed by itself in this process."""
        order = self.order.batch(step)
        if self._cache is not None:
            rows = to_device(self._places[torch.from_numpy(order.indices)], self._cache.device)
            return self._finish(step, order, self._cache[rows])
        if isinstance(self.order, BlockOrder):
            assert self._blocks is not None
            work = read_scattered(self.source, self._blocks, order.indices)
        else:
            work = read_work(self.source, order.indices)
        return self._finish(step, order, _sound(Decoder(self.source, self.options)(work)))

    def _works(self, steps: range, taken: deque[OrderedBatch]) -> Generator[Work, None, None]:
        if isinstance(self.order, BlockOrder):
            with contextlib.closing(read_windows(self.source, self.order, steps)) as windows:
                for order, work in windows:
                    taken.append(order)
                    yield work
            return
        for step in steps:
            order = self.order.batch(step)
            taken.append(order)
            yield read_work(self.source, order.indices)

    def _finish(self, step: int, order: OrderedBatch, images: torch.Tensor) -> Batch:
        indices = torch.from_numpy(order.indices)
        mirrored = torch.from_numpy(flip_draws(self.seed, order)) if self.flips else None
        labels = None if self.source.labels is None else to_device(self.source.labels[indices], self.device)
        inputs = finish_images(to_device(images, self.device), mirrored)
        return Batch(inputs=inputs, labels=labels, indices=indices, step=step)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; from the CPU to an accelerator without waiting, by way of pinned memory."""
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # its memory is not used again before the copy is done: torch sees to that
    return tensor.to(device, non_blocking=True)


def finish_images(images: torch.Tensor, mirrored: torch.Tensor | None) -> torch.Tensor:
    """uint8 (B, C, S, S) -> float32 in [-1, 1] on the same device, those with `mirrored` (B,) left to right."""
    if mirrored is not None:
        images = torch.where(to_device(mirrored, images.device).view(-1, 1, 1, 1), images.flip(-1), images)
    return to_model_range(images)


def free_memory(device: torch.device) -> int:
    """Bytes of an accelerator's memory that are free; 0 where there is none or it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return 0


class _Check:
    """Finds the bad pictures of a source, over all ranks, unless that is known already."""

    def __init__(
        self,
        source: ImageSource,
        options: ImageOptions,
        workers: int,
        progress: Progress | None,
        rank: int,
        world_size: int,
        gather: Gather | None,
        remembered: Path | None,
    ) -> None:
        self._source, self._options, self._workers, self._progress = source, options, workers, progress
        self._rank, self._remembered = rank, remembered
        self._gather: Gather = gather or (lambda value: [value])
        self._part = (rank, world_size) if gather else (0, 1)
        self._about = {
            "version": _REMEMBERED_VERSION,
            "data": source.fingerprint,
            "options": json.loads(json.dumps(dataclasses.asdict(options))),
        }

    def bad(self, on_error: OnError) -> tuple[BadImage, ...]:
        """The bad pictures, by number.

        Raises:
            DataError: they are fatal.
        """
        known = next((known for known in self._gather(self._recall()) if known is not None), None)
        if known is None:
            known, problem = [], None
            try:
                found = find_bad(
                    self._source, self._options, workers=self._workers, progress=self._progress, part=self._part
                )
                known = [(image.index, image.reason) for image in found]
            except DataError as error:  # the other ranks wait: they must hear of it
                problem = str(error)
            answers = self._gather((known, problem))
            failed = next((problem for _, problem in answers if problem is not None), None)
            if failed is not None:
                raise DataError(failed)
            known = [image for part, _ in answers for image in part]
            if self._remembered is not None and self._rank == 0 and (on_error == "skip" or not known):
                write_json(self._remembered, self._about | {"bad": known})
        bad = tuple(BadImage(index=index, where=self._source.describe(index), reason=reason) for index, reason in known)
        judge(bad, len(self._source), on_error)
        return bad

    def _recall(self) -> list[tuple[int, str]] | None:
        """What an earlier run found in the same data; None if there was none."""
        if self._remembered is None:
            return None
        try:
            values = json.loads(self._remembered.read_text(encoding="utf-8"))
            if {key: values[key] for key in self._about} != self._about:
                return None
            bad = [(int(index), str(reason)) for index, reason in values["bad"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return bad if all(0 <= index < len(self._source) for index, _ in bad) else None


def _order(
    usable: Integers, blocks: Any, *, batch_size: int, seed: int, rank: int, world_size: int
) -> SampleOrder | BlockOrder:
    if blocks is None:
        return SampleOrder(usable, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
    return BlockOrder(
        usable, blocks.starts, blocks.sizes, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size
    )


def _sound(chunk: DecodedChunk) -> torch.Tensor:
    if chunk.bad:
        raise DataError(chunk.bad[0].reason)
    return torch.from_numpy(chunk.images)
