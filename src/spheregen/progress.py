"""Progress of a long run: a bar on terminals, plain lines in logs, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Part = TypeVar("Part")


class Reporter(Protocol):
    """The listener that long work calls; users of the library may pass their own."""

    def message(self, text: str) -> None:
        """Tell a line of news."""

    def start(self, total: int, done: int, unit_images: int) -> None:
        """Begin a run of `total` steps, `done` of them earlier; a step sees `unit_images` images."""

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        """Tell that `done` steps are done; metrics come at log intervals only."""

    def stop(self) -> None:
        """End the run, well or not."""


class QuietReporter:
    """Nothing but warnings and what was left out."""

    def message(self, text: str) -> None:
        if text.startswith(("warning", "skipped", "failed")):
            print(text, file=sys.stderr, flush=True)

    def start(self, total: int, done: int, unit_images: int) -> None: ...
    def step(self, done: int, metrics: Mapping[str, float] | None) -> None: ...
    def stop(self) -> None: ...


class LineReporter:
    """Plain lines for logs and pipes: one every `every` seconds."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.loss = ""

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def start(self, total: int, done: int, unit_images: int) -> None:
        self.total, self.first, self.images = total, done, unit_images
        self.begun = self.last = time.monotonic()

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        if metrics and "loss" in metrics:
            self.loss = f"loss {metrics['loss']:.4f}"
        now = time.monotonic()
        if now - self.last < self.every and done < self.total:
            return
        self.last, rate = now, (done - self.first) / max(now - self.begun, 1e-9)
        self.show(done, f"{rate * self.images:.0f} images/s", rate)

    def show(self, done: int, speed: str, rate: float) -> None:
        """Tell it, at so many steps a second."""
        minutes, seconds = divmod(int((self.total - done) / max(rate, 1e-9)), 60)
        loss = f"  {self.loss}" if self.loss else ""
        self.message(f"step {done}/{self.total}{loss}  {speed}  {minutes}:{seconds:02d} left")

    def stop(self) -> None: ...


class BarReporter(LineReporter):
    """A progress bar with rate and remaining time, on a terminal."""

    def __init__(self) -> None:
        super().__init__(every=0.0)
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns,
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def message(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def start(self, total: int, done: int, unit_images: int) -> None:
        super().start(total, done, unit_images)
        self.task = self.progress.add_task("", total=total, completed=done, rate="")
        self.progress.start()

    def show(self, done: int, speed: str, rate: float) -> None:
        self.progress.update(self.task, description=self.loss, completed=done, rate=speed)

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
