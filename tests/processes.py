"""Processes of the command or of a function, started by a server that has imported everything: a start costs little."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

HEAVY = ("spheregen.cli.main", "spheregen.training.trainer", "spheregen.evaluation.request", "torch.distributed.fsdp")
_PATIENCE_SECONDS = 200.0  # less than a test has
_FORKS = "forkserver" in multiprocessing.get_all_start_methods()
context = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
context.set_forkserver_preload([*HEAVY, "torch._dynamo"])


def command(arguments: Sequence[str], before: str = "") -> None:
    """Run `spheregen` with these arguments, after some code that changes it."""
    exec(before, {})
    from spheregen.cli.main import run

    run(list(arguments))


class Started:
    """A process that runs a function; what it prints goes to files.

    It computes with as many threads as this one, for sums may depend on that; the processes of a world have one each.
    """

    def __init__(self, function: Callable[..., None], *arguments: Any, **environment: str) -> None:
        self._texts = Path(tempfile.mkdtemp())
        self.store: Any = None  # where the processes of a world find each other; it lives as long as they do
        threads = 1 if "RANK" in environment else torch.get_num_threads()
        self._process: BaseProcess = context.Process(
            target=_child, args=(function, arguments, environment, threads, str(Path.cwd()), str(self._texts))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to it and to the processes that it started."""
        while self.poll() is None:
            try:
                return os.killpg(self.pid, number)
            except ProcessLookupError:  # its group is not there yet
                time.sleep(0.01)

    def finish(self, seconds: float = _PATIENCE_SECONDS) -> tuple[int, str, str]:
        """Return its exit code, what it printed, and its messages."""
        self._process.join(seconds)
        hangs = self.poll() is None
        if hangs:
            self._process.kill()
        texts = [(self._texts / name).read_text() for name in ("stdout", "stderr")]
        assert not hangs, f"a process ran for more than {seconds} s: {texts}"
        shutil.rmtree(self._texts)
        assert self._process.exitcode is not None
        return self._process.exitcode, *texts


def world(count: int, function: Callable[..., None], *arguments: Any) -> list[Started]:
    """Start the processes of one world, as `torchrun` does, but none of them ends the others when it fails."""
    store, shared = common_store(count)
    processes = [Started(function, *arguments, **shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(count)]
    for process in processes:
        process.store = store
    return processes


def common_store(count: int) -> tuple[Any, dict[str, str]]:
    """Return the store where the processes of a world find each other, and the variables that tell them of it.

    It is here, as `torchrun` has it: a port that is looked for, freed, and opened again by the first process may have
    gone to somebody else meanwhile, for whom the second would wait.
    """
    from torch.distributed import TCPStore  # not every torch has it

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    return store, {**shared, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


def _child(
    function: Callable[..., None],
    arguments: Sequence[Any],
    environment: dict[str, str],
    threads: int,
    folder: str,
    texts: str,
) -> None:
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{texts}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(threads)
    faulthandler.dump_traceback_later(_PATIENCE_SECONDS - 20)  # where it hangs, if it does
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
