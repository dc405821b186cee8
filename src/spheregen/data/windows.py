"""Encoded pictures in block order: window after window is read, the next one in a thread while this one is used."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from spheregen.data.decoding import Work
from spheregen.data.order import BlockOrder, Integers, OrderedBatch
from spheregen.data.sources import Blocks, ImageSource
from spheregen.errors import DataError

_AHEAD_BYTES = 256 << 20  # encoded bytes of this window and the next, beyond which the next is not read early

Window = dict[int, Sequence[bytes]]


def read_windows(
    source: ImageSource, order: BlockOrder, steps: range
) -> Generator[tuple[OrderedBatch, Work], None, None]:
    """The work of each step, steps ascending; starts to read where the first step begins.

    A batch's bytes may come from several windows, but one window and the next are all that is held. A block that cannot
    be read raises a DataError.
    """
    reader = _Reader(source, order, steps.stop * order.batch_size)
    try:
        for step in steps:
            batch = order.batch(step)
            yield batch, Work(indices=batch.indices, encoded=list(reader.read(batch)))
    finally:
        reader.close()


def read_scattered(source: ImageSource, blocks: Blocks, indices: Integers) -> Work:
    """The work of one batch by itself, a block at a time, of which nothing is held afterwards."""
    encoded: list[bytes | str] = [b""] * len(indices)
    places = np.searchsorted(blocks.starts, indices, side="right") - 1
    for block in np.unique(places).tolist():
        data = source.read_block(block)
        for row in np.flatnonzero(places == block).tolist():
            encoded[row] = data[int(indices[row] - blocks.starts[block])]
    return Work(indices=indices, encoded=encoded)


class _Reader:
    def __init__(self, source: ImageSource, order: BlockOrder, end: int) -> None:
        self._source = source
        self._order = order
        self._end = end  # place in the sequence of epochs behind which nothing is needed
        self._key: tuple[int, int] | None = None
        self._window: Window = {}
        self._next: tuple[tuple[int, int], Future[Window]] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._stopped = threading.Event()

    def read(self, batch: OrderedBatch) -> Iterator[bytes]:
        assert batch.windows is not None
        starts = self._order.starts
        blocks = np.searchsorted(starts, batch.indices, side="right") - 1
        rows = batch.indices - starts[blocks]
        keys = zip(batch.epochs.tolist(), batch.windows.tolist(), strict=True)
        for key, block, row in zip(keys, blocks.tolist(), rows.tolist(), strict=True):
            if key != self._key:
                self._go_to(key)
            yield self._window[block][row]

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)  # at most until the block in hand is there
        self._window = {}
        self._next = None

    def _go_to(self, key: tuple[int, int]) -> None:
        self._window = {}  # let go before more is read
        if self._next is not None:
            expected, future = self._next
            self._next = None
            window = future.result()  # waited for in any case: the source serves one reader at a time
            if expected == key:
                self._window = window
            del window, future
        if not self._window:
            self._window = self._load(key)
        self._key = key
        following = self._order.next_window(*key)
        needed = self._order.window_start(*following) < self._end
        if needed and self._bytes(key) + self._bytes(following) <= _AHEAD_BYTES:
            if self._thread is None:  # not earlier: worker processes are forked before the first window is asked for
                self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spheregen-read")
            self._next = (following, self._thread.submit(self._load, following))

    def _load(self, key: tuple[int, int]) -> Window:
        window: Window = {}
        for block in self._order.window_blocks(*key).tolist():
            if self._stopped.is_set():
                raise DataError("reading was stopped")
            window[block] = self._source.read_block(block)
        return window

    def _bytes(self, key: tuple[int, int]) -> int:
        return int(self._order.sizes[self._order.window_blocks(*key)].sum())
