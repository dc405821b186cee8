"""Training batches, by step: the same for any start, any number of workers, cached or read from disk each time."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from spheregen.data.captions import CaptionLabels
from spheregen.data.decoding import (
    DecodedChunk,
    Gather,
    OnError,
    Progress,
    Work,
    check_reading,
    decode,
    find_bad,
    load_all,
    ordered_map,
    part_fingerprint,
    read_work,
)
from spheregen.data.images import to_model_range
from spheregen.data.order import BlockOrder, OrderedBatch, SampleOrder, Window, flip_draws
from spheregen.data.source import ImageSource, digest
from spheregen.devices import available_memory
from spheregen.errors import ConfigError, DataError
from spheregen.pixels import ImageOptions

Shuffle = Literal["auto", "full", "blocks"]

_AHEAD_BYTES = 256 << 20  # encoded bytes of this window and the next, beyond which the next is not read early


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The samples of one training step (one rank's share)."""

    inputs: torch.Tensor  # float32: images (B, C, S, S) in [-1, 1], or latents (B, N, d)
    labels: torch.Tensor | None  # (B,) int64, texts (B, D + 1) float32, or None
    indices: torch.Tensor  # (B,) int64 on the CPU, numbers in the source
    step: int  # the global step
    texts: tuple[str, ...] | None = None  # (B,) the captions that labels stand for


class Batches(ABC):
    """The batches of steps `start_step` .. `steps`-1 of a run; iterate, or ask for any one with `batch(step)`."""

    count: int  # samples in an epoch
    fingerprint: str  # of the data, without what was skipped
    earlier_fingerprint: str | None = None  # that versions before 0.2 gave them
    skipped: tuple[str, ...]  # one line for each image that was left out
    class_names: tuple[str, ...]  # empty = unlabelled
    captions: CaptionLabels | None = None  # what labels are made of in place of classes

    def __init__(
        self, seed: int, steps: int, start_step: int, prefetch: int, device: torch.device | None, *, flips: bool
    ) -> None:
        if not 0 <= start_step <= steps:
            raise ConfigError(f"start_step is {start_step}; with {steps} steps it is from 0 to {steps}")
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; give a number of batches from 1 up")
        self.seed, self.steps, self.start_step, self.prefetch, self.flips = seed, steps, start_step, prefetch, flips
        self.device = device if device is not None else torch.device("cpu")

    def __len__(self) -> int:
        """Return the number of steps left."""
        return self.steps - self.start_step

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]: ...

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return the batch of any step >= 0, computed by itself in this process."""

    def labels_of(self, order: OrderedBatch, classes: torch.Tensor | None) -> torch.Tensor | None:
        """Return the labels of a batch on the device: of its captions, else its classes (B,)."""
        labels = classes if self.captions is None else self.captions(order)
        return None if labels is None else to_device(labels, self.device)

    def texts_of(self, order: OrderedBatch) -> tuple[str, ...] | None:
        """Return the captions of a batch."""
        return None if self.captions is None else self.captions.texts(order)

    def kept(self, samples: torch.Tensor) -> torch.Tensor:
        """Move samples to the device if they take at most a quarter of its free memory."""
        free = available_memory(self.device) or 0
        return samples.to(self.device) if samples.nbytes <= free // 4 else samples


class TrainingBatches(Batches):
    """Batches of images.

    If the decoded images fit in `cache_bytes` they are decoded once, here; otherwise they are decoded while training
    runs, by the workers of a DataLoader ahead of it. Either way every batch is the same, bit for bit, for any number of
    workers, any `start_step` and any division over ranks. Bad images are found here: fatal, or left out for good, so
    that the order is fixed before the first step.

    Args:
        batch_size: over all ranks together; it may exceed the number of images.
        steps: length of the whole run, not of what is left of it.
        seed: of the order and the flips.
        flips: mirror each image left to right with probability 0.5, drawn anew in each epoch.
        on_error: images that cannot be read are fatal ("fail") or left out ("skip").
        workers: processes that decode; 0 = this one.
        cache_bytes: the most memory that decoded images may take in each process.
        start_step: where to continue.
        rank, world_size: this process's share of each batch.
        progress: called while images are decoded or checked here.
        shuffle: "full": every epoch is a permutation of all images; "blocks": of blocks, and within windows of about
            64 MiB (see `BlockOrder`), which reads the data in runs; "auto": "blocks" where the source says that
            random access is slow, a property of the data alone.
        validate: decode every image once before the first step, unless they are cached, which does the same. None:
            unless they come over a network. Without it a bad image is fatal when it is met.
        prefetch: batches that each worker decodes ahead.
        device: where images and labels of the batches shall be; None = the CPU. On an accelerator the cache moves
            there if it takes at most a quarter of the free memory; else batches travel as uint8 from pinned memory.
        gather: all-gathers a picklable object over ranks, in rank order; with it they divide the validation. All ranks
            must then build their batches at the same time.
        captions: make the labels, in place of classes.
        remembered: a JSON file in which the outcome of the validation is kept, so that a run that is continued does
            not repeat it.

    Raises:
        DataError: bad images, see `load_all`; a worker process died; blocks cannot be read.
        ConfigError: an argument is impossible, or the source's images must not be flipped.
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
        captions: CaptionLabels | None = None,
    ) -> None:
        super().__init__(seed, steps, start_step, prefetch, device, flips=flips)
        check_reading(on_error, workers)
        if flips and not source.flips_allowed:
            raise ConfigError(f"mirror images of {source.name} are no {source.name}; set data.flips=false")
        if shuffle not in get_args(Shuffle):
            raise ConfigError(f"shuffle is {shuffle!r}; choose one of {', '.join(get_args(Shuffle))}")
        wanted = shuffle == "blocks" or (shuffle == "auto" and source.random_access_is_slow)
        blocks = source.blocks() if wanted else None
        if shuffle == "blocks" and blocks is None:
            raise ConfigError(f"{source.name} is not stored in blocks; use data.shuffle=full")
        self.source, self.options, self.workers = source, options, workers
        self.class_names, self.skipped, self.captions = source.class_names, (), captions
        self._cache: torch.Tensor | None = None  # (kept, C, S, S) uint8
        if len(source) * options.bytes_per_image <= cache_bytes:
            loaded = load_all(source, options, on_error=on_error, workers=workers, progress=progress)
            self._cache, self.skipped = loaded.images, loaded.skipped
            usable = loaded.indices.numpy()
        else:
            if validate is None:
                validate = not source.remote or on_error == "skip"
            if not validate and on_error == "skip":
                raise ConfigError("data.on_error=skip needs data.check on: all images are tried before the first step")
            bad = () if not validate else find_bad(
                source, options, on_error=on_error, workers=workers, progress=progress,
                rank=rank, world_size=world_size, gather=gather, remembered=remembered,
            )  # fmt: skip
            self.skipped = tuple(image.reason for image in bad)
            usable = np.setdiff1d(np.arange(len(source), dtype=np.int64), [image.index for image in bad])
        share = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
        self.order = (
            SampleOrder(usable, **share) if blocks is None else BlockOrder(usable, blocks.starts, blocks.sizes, **share)
        )
        self.count, self.fingerprint = len(usable), with_captions(part_fingerprint(source, usable), captions)
        self.earlier_fingerprint = part_fingerprint(source, usable, earlier=True)
        if self._cache is not None:
            # number in the source -> row of the cache
            self._places = torch.full((len(source),), -1, dtype=torch.int64, device="cpu")
            self._places[torch.from_numpy(usable)] = torch.arange(self.count, device="cpu")
            self._cache = self.kept(self._cache)

    def __iter__(self) -> Iterator[Batch]:
        steps = range(self.start_step, self.steps)
        if self._cache is not None:
            yield from map(self.batch, steps)
            return
        taken: deque[OrderedBatch] = deque()  # batches that are in work
        works = self._works(steps, taken)
        chunks = ordered_map(
            partial(decode, self.source, self.options), works, workers=self.workers, prefetch=self.prefetch
        )
        with contextlib.closing(works), contextlib.closing(chunks):
            for step, chunk in zip(steps, chunks, strict=True):
                yield self._finish(step, taken.popleft(), _sound(chunk))

    def batch(self, step: int) -> Batch:
        order = self.order.batch(step)
        if self._cache is not None:
            rows = to_device(self._places[torch.from_numpy(order.indices)], self._cache.device)
            return self._finish(step, order, self._cache[rows])
        with contextlib.closing(self._works(range(step, step + 1), deque())) as works:
            return self._finish(step, order, _sound(decode(self.source, self.options, next(works))))

    def _works(self, steps: range, taken: deque[OrderedBatch]) -> Generator[Work, None, None]:
        if isinstance(self.order, BlockOrder):
            with contextlib.closing(_read_windows(self.source, self.order, steps)) as encoded:
                for step, data in zip(steps, encoded, strict=True):
                    taken.append(self.order.batch(step))
                    yield Work(indices=taken[-1].indices, encoded=data)
            return
        for step in steps:
            taken.append(self.order.batch(step))
            yield read_work(self.source, taken[-1].indices)

    def _finish(self, step: int, order: OrderedBatch, images: torch.Tensor) -> Batch:
        indices = torch.from_numpy(order.indices)
        labels = self.labels_of(order, None if self.source.labels is None else self.source.labels[indices])
        images = to_device(images, self.device)
        if self.flips:
            mirrored = to_device(torch.from_numpy(flip_draws(self.seed, order)), self.device)
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        texts = self.texts_of(order)
        return Batch(inputs=to_model_range(images), labels=labels, indices=indices, step=step, texts=texts)


def with_captions(fingerprint: str, captions: CaptionLabels | None) -> str:
    """Return a fingerprint of data that covers the captions of its images too, where there are some."""
    return fingerprint if captions is None else digest(fingerprint.encode(), captions.captions.fingerprint.encode())


def _read_windows(source: ImageSource, order: BlockOrder, steps: range) -> Generator[list[bytes | str], None, None]:
    """Yield the encoded images of each step, window after window; no more than this and the next one are held."""
    met = (window for step in steps for window, _ in order.parts(step))
    windows = _load_windows(source, order, (next(same) for _, same in itertools.groupby(met, lambda w: w.start)))
    here, held = -1, dict[int, Sequence[bytes]]()
    with contextlib.closing(windows):
        for step in steps:
            encoded: list[bytes | str] = []
            for window, part in order.parts(step):
                if window.start != here:
                    held = {}  # let go before more is read
                    here, held = window.start, next(windows)
                samples = window.samples[part]
                blocks = np.searchsorted(order.starts, samples, side="right") - 1
                rows = samples - order.starts[blocks]
                encoded += [held[block][row] for block, row in zip(blocks.tolist(), rows.tolist(), strict=True)]
            yield encoded


def _load_windows(
    source: ImageSource, order: BlockOrder, windows: Iterator[Window]
) -> Generator[dict[int, Sequence[bytes]], None, None]:
    """Yield the blocks of each window, by number; while one is used a thread reads the next if both are small."""
    stopped = False

    def load(window: Window) -> dict[int, Sequence[bytes]]:
        return {block: source.read_block(block) for block in window.blocks.tolist() if not stopped}

    window, ahead = next(windows, None), None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="spheregen-read") as thread:
        try:
            while window is not None:
                held = ahead.result() if ahead is not None else load(window)
                following = next(windows, None)
                ahead = None
                if following is not None and order.sizes[[*window.blocks, *following.blocks]].sum() <= _AHEAD_BYTES:
                    ahead = thread.submit(load, following)
                yield held
                held, window = {}, following
        finally:
            stopped = True  # waits at most for the block in hand


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device; from the CPU to an accelerator without waiting, by way of pinned memory."""
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # its memory is not used again before the copy is done: torch sees to that
    return tensor.to(device, non_blocking=True)


def _sound(chunk: DecodedChunk) -> torch.Tensor:
    if chunk.bad:
        raise DataError(chunk.bad[0].reason)
    return torch.from_numpy(chunk.images)
