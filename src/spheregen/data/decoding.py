"""Decoding of many images, in this process or in the worker processes of torch's DataLoader, with the same result."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from spheregen.data.order import Integers
from spheregen.data.source import ImageSource, digest
from spheregen.errors import ConfigError, DataError, SphereGenError
from spheregen.files import parse_json, write_json
from spheregen.pixels import ImageOptions, Pixels, decode_bytes, load_array

Item = TypeVar("Item")
Result = TypeVar("Result")
OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]  # (images done, images in all)
Gather = Callable[[object], list[Any]]  # all-gathers a picklable object over ranks, in rank order

_CHUNK = 256  # images decoded together, fewer if they are large
_CHUNK_BYTES = 32 << 20
_NAMED = 5  # bad images that an error names


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

    def good(self) -> tuple[Integers, Pixels]:
        """Return numbers and pixels of those that are not bad."""
        if not self.bad:
            return self.indices, self.images
        good = ~np.isin(self.indices, [image.index for image in self.bad])
        return self.indices[good], self.images[good]


@dataclass(frozen=True, kw_only=True)
class LoadedImages:
    """Images in memory."""

    images: torch.Tensor  # (N, C, S, S) uint8, 0..255
    labels: torch.Tensor | None  # (N,) int64, or None
    indices: torch.Tensor  # (N,) int64, the numbers of the images in the source, ascending
    fingerprint: str  # of the source, and of which of its images these are
    skipped: tuple[str, ...]  # one line for each bad image left out: where it is and what is wrong

    def __len__(self) -> int:
        return len(self.images)


def load_all(
    source: ImageSource,
    options: ImageOptions,
    *,
    on_error: OnError = "fail",
    workers: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> LoadedImages:
    """Decode a source into memory.

    Args:
        on_error: what to do about images that cannot be read: "fail" or "skip".
        workers: processes that decode; 0 = this one.
        limit: take this many images at most, evenly spread over the source (whose order may follow the classes).
        progress: called as images are done.

    Raises:
        DataError: with "fail" an image is bad (up to five are named, after all were tried, so that the message can say
            how many there are); with "skip" all are.
        ConfigError: an argument is impossible.
    """
    check_reading(on_error, workers)
    indices = spread_indices(len(source), limit)
    images = torch.empty((len(indices), *options.shape), dtype=torch.uint8, device="cpu")
    kept: list[Integers] = []
    count = 0
    bad: list[BadImage] = []
    for chunk in _scan(source, options, indices, workers, progress):
        numbers, pixels = chunk.good()
        images[count : count + len(numbers)] = torch.from_numpy(pixels)
        kept.append(numbers)
        count += len(numbers)
        bad.extend(chunk.bad)
    source.release()
    judge(bad, len(indices), on_error)
    chosen = torch.from_numpy(np.concatenate(kept))
    return LoadedImages(
        images=images[:count],
        labels=None if source.labels is None else source.labels[chosen],
        indices=chosen,
        fingerprint=part_fingerprint(source, chosen.numpy()),
        skipped=tuple(image.reason for image in bad),
    )


def find_bad(
    source: ImageSource,
    options: ImageOptions,
    *,
    on_error: OnError = "skip",
    workers: int = 0,
    progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather | None = None,
    remembered: Path | None = None,
) -> tuple[BadImage, ...]:
    """Decode every image of a source without keeping any, and return the bad ones by number.

    With `gather`, which all-gathers a picklable object over ranks, they share the work. `remembered` is a JSON file of
    the outcome: if it tells of the same data, nothing is decoded.

    Raises:
        DataError: they are fatal, see `judge`; or a rank cannot read the source.
    """
    check_reading(on_error, workers)
    together: Gather = gather or (lambda value: [value])
    about = {"version": 1, "data": source.fingerprint, "options": json.loads(json.dumps(asdict(options)))}
    known = next((known for known in together(_recall(remembered, about)) if known is not None), None)
    if known is None:
        place, parts = (rank, world_size) if gather else (0, 1)
        indices = np.arange(len(source) * place // parts, len(source) * (place + 1) // parts, dtype=np.int64)
        mine: list[BadImage] | str  # an error, which the other ranks, who wait, must hear of
        try:
            mine = [image for chunk in _scan(source, options, indices, workers, progress) for image in chunk.bad]
        except DataError as error:
            mine = str(error)
        source.release()
        found = together(mine)
        if failed := [problem for problem in found if isinstance(problem, str)]:
            raise DataError(failed[0])
        known = [(image.index, image.reason) for image in itertools.chain(*found)]
        if remembered is not None and rank == 0 and (on_error == "skip" or not known):
            write_json(remembered, about | {"bad": known})
    bad = tuple(BadImage(index=index, where=source.describe(index), reason=reason) for index, reason in known)
    judge(bad, len(source), on_error)
    return bad


def _recall(remembered: Path | None, about: dict[str, Any]) -> list[tuple[int, str]] | None:
    """Return the numbers and reasons that an earlier run wrote of the same data; None if there was none."""
    try:
        values = parse_json(remembered.read_text(encoding="utf-8")) if remembered else {}
        same = {key: values[key] for key in about} == about
        return [(int(index), str(reason)) for index, reason in values["bad"]] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def judge(bad: Sequence[BadImage], total: int, on_error: OnError) -> None:
    """Raise a DataError that names up to five bad images if they are fatal: with "fail", and always if all are bad."""
    if bad and len(bad) == total:
        raise DataError(f"none of the {total} images can be read; the first: {bad[0].reason}")
    if bad and on_error == "fail":
        more = ", ".join(image.where for image in bad[1:_NAMED])
        others = f" ({len(bad)} of {total} images are bad; also {more}; `spheregen stats` lists all)" if more else ""
        raise DataError(bad[0].reason + others)


def check_reading(on_error: str, workers: int) -> None:
    """Refuse impossible values with a ConfigError."""
    if on_error not in get_args(OnError):
        raise ConfigError(f"on_error is {on_error!r}; choose 'fail' or 'skip'")
    if workers < 0:
        raise ConfigError(f"workers is {workers}; give 0 (this process) or more")


def spread_indices(count: int, limit: int | None) -> Integers:
    """Return the numbers 0 .. count-1, or `limit` (at least 1) of them, evenly spread."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give a number of images from 1 up, or none")
    indices = np.arange(count if limit is None else min(count, limit), dtype=np.int64)
    return indices * count // max(1, len(indices))


def part_fingerprint(source: ImageSource, indices: Integers, *, earlier: bool = False) -> str:
    """Return the source's fingerprint if `indices` are all of its images, else one that also covers which they are.

    With `earlier`, that which versions before 0.2 gave them, where it was another one.
    """
    whole = (source.earlier_fingerprint if earlier else None) or source.fingerprint
    return whole if len(indices) == len(source) else digest(whole.encode(), indices.astype("<i8").tobytes())


def _scan(
    source: ImageSource, options: ImageOptions, indices: Integers, workers: int, progress: Progress | None
) -> Iterator[DecodedChunk]:
    done = 0
    size = max(1, min(_CHUNK, _CHUNK_BYTES // options.bytes_per_image))
    chunks = (indices[start : start + size] for start in range(0, len(indices), size))
    with contextlib.closing(decode_chunks(source, options, chunks, workers)) as decoded:
        for chunk in decoded:
            yield chunk
            done += len(chunk.indices)
            if progress is not None:
                progress(done, len(indices))


def decode_chunks(
    source: ImageSource, options: ImageOptions, chunks: Iterable[Integers], workers: int
) -> Generator[DecodedChunk, None, None]:
    """Read chunk after chunk of images, given by their numbers, in order; `workers` processes read ahead."""
    works = (read_work(source, chunk) for chunk in chunks)
    return ordered_map(partial(decode, source, options), works, workers=workers)


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


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, prefetch: int = 2
) -> Generator[Result, None, None]:
    """Apply a function to each item, in order, in the workers of a DataLoader.

    Args:
        function: picklable where processes are spawned.
        items: taken in this process, `workers * prefetch` ahead of the result that is asked for; a SphereGenError
            raised there is raised here when its turn comes.
        workers: processes; 0 = this one, nothing ahead.

    Raises:
        DataError: a worker died or cannot be started.
        SphereGenError: what the function raises.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with warnings.catch_warnings(), _without_child_handler():
        warnings.filterwarnings("ignore", message=".*will create.*worker processes")  # the number is the user's choice
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")  # they touch no lock of ours
        loader = DataLoader(
            _Calls(function),
            sampler=_guarded(items),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            generator=torch.Generator("cpu"),  # the global one stays as it is
        )
        try:
            results: Any = iter(loader)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"a worker process cannot be started ({reason}); use fewer (data.workers)") from error
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


class _Calls(Dataset[Any]):
    """A data set whose element of an item is the function's result, or the SphereGenError that it raised."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, item: Any, /) -> Any:
        try:
            return item if isinstance(item, SphereGenError) else self._function(item)
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
