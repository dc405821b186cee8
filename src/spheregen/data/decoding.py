"""Decoding of many images, in this process or in the worker processes of torch's DataLoader, with the same result."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from spheregen.data.images import ImageOptions, Pixels, decode_bytes, load_array
from spheregen.data.order import Integers
from spheregen.data.source import ImageSource
from spheregen.errors import DataError, SphereGenError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that cannot be read."""

    index: int  # its number in the source
    where: str  # path, or file and row
    reason: str  # one line that names it, the cause and the cure


@dataclass(frozen=True, kw_only=True)
class Work:
    """Images to decode together, as they are handed to whoever does it."""

    indices: Integers  # (n,) numbers in the source
    encoded: list[bytes | str] | None = None  # (n,) their bytes, or why they cannot be had; None = read them yourself


@dataclass(frozen=True, kw_only=True)
class DecodedChunk:
    """Images read together."""

    indices: Integers  # (n,) numbers in the source
    images: Pixels  # (n, C, S, S) uint8; zeros where bad
    bad: tuple[BadImage, ...]


def read_work(source: ImageSource, indices: Integers) -> Work:
    """Return the images with these numbers; with their bytes, where the source wants to be read in one process."""
    if not source.central:
        return Work(indices=indices)
    encoded: list[bytes | str] = []
    for index in indices.tolist():
        try:
            encoded.append(source.read_bytes(index))
        except DataError as error:
            encoded.append(str(error))
    return Work(indices=indices, encoded=encoded)


def decode(source: ImageSource, options: ImageOptions, work: Work) -> DecodedChunk:
    """Turn work into pixels, perhaps in a worker process. Bad images are reported, not raised."""
    images = np.zeros((len(work.indices), *options.shape), dtype=np.uint8)
    bad: list[BadImage] = []
    for row, index in enumerate(work.indices.tolist()):
        where = partial(source.describe, index)
        image = None
        try:
            if work.encoded is None:
                image = source.read(index)
            elif isinstance(data := work.encoded[row], str):
                raise DataError(data)
            else:
                image = decode_bytes(data, where)
            images[row] = load_array(image, options)
        except DataError as error:  # what `load_array` raises does not name the image
            reason = str(error) if image is None else f"{where()}: {error}"
            bad.append(BadImage(index=index, where=where(), reason=reason))
    return DecodedChunk(indices=work.indices, images=images, bad=tuple(bad))


def decode_chunks(
    source: ImageSource, options: ImageOptions, chunks: Iterable[Integers], workers: int
) -> Generator[DecodedChunk, None, None]:
    """Read chunk after chunk of images, given by their numbers, in order; `workers` processes read ahead."""
    return ordered_map(
        partial(decode, source, options), (read_work(source, chunk) for chunk in chunks), workers=workers
    )


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    prefetch: int = 2,
) -> Generator[Result, None, None]:
    """Apply a function to each item, in order, in the workers of a DataLoader.

    Args:
        function: picklable where processes are spawned.
        items: taken in this process, `workers * prefetch` ahead of the result that is asked for; a SphereGenError
            raised there is raised here when its turn comes.
        workers: processes; 0 = this one, nothing ahead.
        prefetch: items that each worker has in hand at most.

    Raises:
        DataError: a worker died or cannot be started.
        SphereGenError: what the function raises.
    """
    if workers == 0:
        yield from map(function, items)
        return
    results = _start(function, items, workers, prefetch)
    try:
        for result in results:
            if isinstance(result, SphereGenError):
                raise result
            yield result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a worker process that decodes images died, perhaps because memory ran out ({error}); use fewer workers "
            "(data.workers; 0 decodes in the main process) or smaller batches"
        ) from error
    finally:
        results._shutdown_workers()  # now, not when an exception that holds them is let go


def _start(function: Callable[[Any], Any], items: Iterable[Any], workers: int, prefetch: int) -> Any:
    """Return the iterator of a DataLoader whose sampler are the items."""
    with warnings.catch_warnings(), _without_child_handler():
        warnings.filterwarnings("ignore", message=".*will create.*worker processes")  # the number is the user's choice
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, message=".*fork.*"
        )  # they touch no locks of ours
        loader = DataLoader(
            _Calls(function),
            sampler=_guarded(items),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # the global one stays as it is
        )
        try:
            return iter(loader)
        except OSError as error:
            raise DataError(
                f"a worker process cannot be started ({error.strerror or error}); use fewer (data.workers)"
            ) from error


class _Calls(Dataset[Any]):
    """A data set whose element of an item is the function's result, or the SphereGenError that it raised."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, item: Any, /) -> Any:
        if isinstance(item, SphereGenError):
            return item
        try:
            return self._function(item)
        except SphereGenError as error:
            return error


def _guarded(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items; an error among them becomes the last item, so that it comes in its turn."""
    try:
        yield from items
    except SphereGenError as error:
        yield error


@contextlib.contextmanager
def _without_child_handler() -> Iterator[None]:
    """Undo the handler that torch sets: when a worker dies, it would raise in the middle of whatever is done then,
    such as writing a checkpoint. The next result that is waited for tells of it as well."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _begin_worker(_: int) -> None:
    # Ctrl-C and a polite kill, which a cluster sends to all processes at once, are the main process's business: it may
    # want one more batch to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # the collector would write into every inherited object, and so copy its page


def _as_it_is(value: Any) -> Any:
    return value
