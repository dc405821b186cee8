"""A hint where a run's threads wait for each other because other programs hold the processors.

Threads of one process wait by spinning, which on a busy machine keeps the one from working that they wait for: two are
then several times slower than one (benchmarks/README.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from spheregen.measure.timing import load_of_processors
from spheregen.training.hooks import Values

SHARE = 0.6
"""Of a processor for each thread; a run alone gets 0.95, and 0.7 where threads sleep while they wait. Less is no proof:
threads that have nothing to do sleep, too."""
LOAD = 1.2
"""Programs that want to run, for each processor, beyond which they wait for each other."""
SECONDS = 20.0
"""Of wall time that are looked at."""


class CrowdingMonitor:
    """The hook that tells once how much of the processors a run on the CPU gets, if that is little.

    Args:
        threads: of this process.
        tell: told in one line.
    """

    def __init__(self, threads: int, tell: Callable[[str], None]) -> None:
        self._threads, self._tell = threads, tell
        self._since: tuple[float, float] | None = None

    def on_log(self, step: int, values: Values) -> None:
        """Look at the time since an entry of the log before."""
        if self._threads < 2 or "loss" not in values:
            return
        now = time.perf_counter(), time.process_time()
        if self._since is None:
            self._since = now
            return
        wall, cpu = (after - before for after, before in zip(now, self._since, strict=True))
        if wall < SECONDS:
            return
        self._since = now
        if cpu < SHARE * self._threads * wall and load_of_processors() > LOAD:
            self._tell(
                f"other programs hold this machine: the {self._threads} threads of this run get "
                f"{cpu / wall:.1f} processors and wait for each other; fewer may be much faster: stop it, set "
                "OMP_NUM_THREADS to the processors that are free and give the same command, which continues it"
            )
            self._threads = 0  # it is told
