"""Progress of a long run: a bar on terminals, plain lines in logs, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Part = TypeVar("Part")


class Reporter(Protocol):
    """The listener that long work calls; users of the library may pass their own."""

    earlier: float
    """Seconds that earlier parts of a run took; set before `start`."""

    def message(self, text: str) -> None:
        """Tell a line of news."""

    def start(self, total: int, done: int, unit_images: int) -> None:
        """Begin a run of `total` steps, `done` of them earlier; a step sees `unit_images` images."""

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        """Tell that `done` steps are done; metrics come at log intervals and with the first step."""

    def stop(self) -> None:
        """End the run, well or not."""


class QuietReporter:
    """Nothing but warnings and what was left out."""

    earlier = 0.0

    def message(self, text: str) -> None:
        if text.startswith(("warning", "skipped", "ignored", "failed")):
            print(text, file=sys.stderr, flush=True)

    def start(self, total: int, done: int, unit_images: int) -> None: ...
    def step(self, done: int, metrics: Mapping[str, float] | None) -> None: ...
    def stop(self) -> None: ...


class Pace:
    """The mean time of a step over a whole run, which neither a slow start nor a pause spoils.

    The first call of a process is left out, for it compiles and fills caches; of a step that took a hundred times the
    mean, such as one in which the machine slept, no more than that counts.
    """

    def __init__(self, done: int) -> None:
        self._done, self._time = done, 0.0
        self._steps, self._sum = 0, 0.0

    def add(self, done: int, now: float) -> None:
        """Take note that `done` steps are done at a time in seconds."""
        if self._time:
            steps, seconds = done - self._done, now - self._time
            if steps > 0:
                self._sum += min(seconds, 100 * steps * self._sum / self._steps) if self._steps > 10 else seconds
                self._steps += steps
        self._done, self._time = done, now

    @property
    def seconds(self) -> float:
        """Of a step; 0 while it is not known."""
        return self._sum / self._steps if self._steps else 0.0


def clock(seconds: float) -> str:
    """`0:07`, `3:15`, `26:03:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LineReporter:
    """Plain lines for logs and pipes: one every `every` seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every, self.earlier = every, 0.0
        self.loss = ""

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def start(self, total: int, done: int, unit_images: int) -> None:
        self.total, self.images = total, unit_images
        self.begun = self.last = time.monotonic()
        self.pace = Pace(done)

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        told = bool(self.loss)
        if metrics and "loss" in metrics:
            self.loss = f"loss {metrics['loss']:.4f}"
        now = time.monotonic()
        self.pace.add(done, now)
        if now - self.last < self.every and done < self.total and told == bool(self.loss):
            return
        self.last, seconds = now, self.pace.seconds
        left = f"{clock((self.total - done) * seconds)} left" if seconds else ""
        self.show(done, f"{self.images / seconds:.0f} images/s" if seconds else "", left)

    def show(self, done: int, speed: str, left: str) -> None:
        """Tell where the run is, how fast, and how much time is left."""
        elapsed = f"{clock(self.earlier + time.monotonic() - self.begun)} elapsed"
        self.message("  ".join(part for part in (f"step {done}/{self.total}", self.loss, speed, elapsed, left) if part))

    def stop(self) -> None: ...


class BarReporter(LineReporter):
    """A progress bar with rate and remaining time, on a terminal."""

    def __init__(self) -> None:
        super().__init__(every=0.0)
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns,
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[elapsed]}"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )

    def message(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def start(self, total: int, done: int, unit_images: int) -> None:
        super().start(total, done, unit_images)
        self.task = self.progress.add_task("", total=total, completed=done, rate="", elapsed="", left="")
        self.progress.start()

    def show(self, done: int, speed: str, left: str) -> None:
        elapsed = clock(self.earlier + time.monotonic() - self.begun)
        self.progress.update(self.task, description=self.loss, completed=done, rate=speed, elapsed=elapsed, left=left)

    def stop(self) -> None:
        self.progress.stop()


def default_reporter(*, quiet: bool = False) -> Reporter:
    """Return a bar on a terminal, plain lines elsewhere, warnings alone under `quiet`."""
    if quiet:
        return QuietReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


def watched(
    parts: Iterable[Part], count: int, size: Callable[[Part], int], reporter: Callable[[], Reporter]
) -> Iterator[Part]:
    """Pass on the batches of `count` images and tell how far it is; nothing is said where there is only one batch."""
    telling: Reporter | None = None
    done = 0
    try:
        for part in parts:
            done += size(part)
            if telling is None:
                telling = reporter() if done < count else QuietReporter()
                telling.start(count, 0, 1)
            yield part
            telling.step(done, None)
    finally:
        if telling is not None:
            telling.stop()
