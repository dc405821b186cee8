"""How a long run tells where it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Part = TypeVar("Part")


class Reporter(Protocol):
    """What the trainer calls; a user of the library may pass their own."""

    def message(self, text: str) -> None:
        """One line of news."""

    def start(self, total: int, done: int, unit_images: int) -> None:
        """A run of `total` steps begins, `done` of them earlier; a step sees `unit_images` images."""

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        """`done` steps are done; metrics come at log intervals only."""

    def stop(self) -> None:
        """The run ended, well or not."""


class QuietReporter:
    """Says nothing."""

    def message(self, text: str) -> None: ...
    def start(self, total: int, done: int, unit_images: int) -> None: ...
    def step(self, done: int, metrics: Mapping[str, float] | None) -> None: ...
    def stop(self) -> None: ...


class LineReporter:
    """Plain lines for logs and pipes: one every `every` seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.total = self.first = self.images = 0
        self.begun = self.last = 0.0
        self.loss: float | None = None

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def start(self, total: int, done: int, unit_images: int) -> None:
        self.total, self.first, self.images = total, done, unit_images
        self.begun = self.last = time.monotonic()

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        if metrics:
            self.loss = metrics.get("loss")
        now = time.monotonic()
        if now - self.last < self.every and done < self.total:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.begun, 1e-9)
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        left = (self.total - done) / max(rate, 1e-9)
        print(
            f"step {done}/{self.total}{loss}  {rate * self.images:.0f} images/s  {_minutes(left)} left",
            file=sys.stderr,
            flush=True,
        )

    def stop(self) -> None: ...


class BarReporter:
    """A progress bar with rate and remaining time, on a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.first = self.images = 0
        self.begun = 0.0

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def start(self, total: int, done: int, unit_images: int) -> None:
        self.first, self.images, self.begun = done, unit_images, time.monotonic()
        self.task = self.progress.add_task("", total=total, completed=done, rate="")
        self.progress.start()

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        rate = (done - self.first) * self.images / max(time.monotonic() - self.begun, 1e-9)
        if metrics and "loss" in metrics:
            self.progress.update(self.task, description=f"loss {metrics['loss']:.4f}")
        self.progress.update(self.task, completed=done, rate=f"{rate:.0f} images/s")

    def stop(self) -> None:
        self.progress.stop()


def default_reporter(*, quiet: bool = False) -> Reporter:
    """A bar on a terminal, plain lines elsewhere and under `quiet`."""
    return BarReporter() if sys.stderr.isatty() and not quiet else LineReporter()


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


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
