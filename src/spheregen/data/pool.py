"""Worker processes that apply one function to items in turn; results come back in order.

torch's DataLoader is not used because it raises from a signal handler, in the middle of whatever the program does, when
a worker dies; here that is an error of the call which waits for the result.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from spheregen.errors import DataError, SphereGenError

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    prefetch: int = 2,
    context: Any = None,
) -> Generator[Result, None, None]:
    """Apply `function` to each item, in order.

    Args:
        function: picklable where processes are spawned.
        items: taken in this process, `workers * prefetch` ahead of the result that is asked for; an error raised there
            is raised here when its turn comes.
        workers: processes; 0 = this one, nothing ahead.
        prefetch: items that each worker has in hand at most.
        context: a multiprocessing context; None = the platform's own.

    Raises:
        DataError: a worker died.
    """
    if workers == 0:
        yield from map(function, items)
        return
    team: list[_Worker] = []
    try:
        for _ in range(workers):  # before the first item is taken, so that no thread of its maker is there to be forked
            team.append(_Worker(function, team, context or multiprocessing.get_context()))
        yield from _rounds(team, iter(items), len(team) * prefetch)
    finally:
        for worker in team:
            worker.stop()
        for worker in team:
            worker.close()


def _rounds(team: list[_Worker], items: Iterator[Any], ahead: int) -> Iterator[Any]:
    waiting: deque[_Worker] = deque()
    turns = itertools.cycle(team)
    failure: BaseException | None = None
    finished = False
    while True:
        while not finished and len(waiting) < ahead:
            try:
                item = next(items)
            except StopIteration:
                finished = True
            except Exception as error:
                failure, finished = error, True
            else:
                worker = next(turns)
                worker.send(item)
                waiting.append(worker)
        if not waiting:
            if failure is not None:
                raise failure
            return
        yield waiting.popleft().receive()


class _Worker:
    """One process, and this end of the pipe to it."""

    def __init__(self, function: Callable[[Any], Any], others: list[_Worker], context: Any) -> None:
        self._pipe, theirs = context.Pipe()
        # a forked process inherits these ends; while it holds them, nobody notices that this process is gone
        inherited = [self._pipe, *(worker._pipe for worker in others)] if context.get_start_method() == "fork" else []
        self._process = context.Process(target=_work, args=(function, theirs, inherited), daemon=True)
        try:
            with warnings.catch_warnings():  # of forking beside threads: the workers touch none of their locks
                warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
                self._process.start()
        except OSError as error:
            self._pipe.close()
            raise DataError(
                f"a worker process cannot be started ({error.strerror or error}); use fewer (data.workers)"
            ) from error
        finally:
            theirs.close()

    def send(self, item: Any) -> None:
        try:
            self._pipe.send(item)
        except OSError as error:
            raise self._dead() from error

    def receive(self) -> Any:
        ready = wait([self._pipe, self._process.sentinel])
        if self._pipe not in ready and not self._pipe.poll():
            raise self._dead()
        try:
            result, problem = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error
        if isinstance(problem, SphereGenError):
            raise problem
        if problem is not None:
            raise RuntimeError(f"in a worker process:\n{problem}")
        return result

    def stop(self) -> None:
        self._process.kill()  # it holds nothing that must be put in order, and does not hear a polite kill

    def close(self) -> None:
        self._process.join()
        self._pipe.close()
        self._process.close()

    def _dead(self) -> DataError:
        self._process.join(5)
        code = self._process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return DataError(
            f"a worker process that decodes images {how}, perhaps because memory ran out; use fewer workers "
            "(data.workers; 0 decodes in the main process) or smaller batches"
        )


def _work(function: Callable[[Any], Any], pipe: Connection, inherited: list[Connection]) -> None:
    """What a worker process does."""
    for end in inherited:
        end.close()
    # Ctrl-C and a polite kill, which a cluster sends to all processes at once, are the main process's business: it may
    # want one more batch to finish its step. What it set up for them must not run here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # the collector would write into every inherited object, and so copy its page
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def fetch() -> None:  # in a thread: the sender never waits for a worker that waits to hand over its result
        while True:
            try:
                items.put(pipe.recv())
            except (EOFError, OSError):
                os._exit(0)  # the main process is gone
            except BaseException:  # an item that cannot be unpickled here, under spawn
                traceback.print_exc()
                os._exit(1)

    threading.Thread(target=fetch, daemon=True).start()
    while True:
        item = items.get()
        answer: tuple[Any, Any]
        try:
            answer = (function(item), None)
        except SphereGenError as error:
            answer = (None, error)
        except Exception:
            answer = (None, traceback.format_exc())
        del item
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)  # nobody wants it any more
