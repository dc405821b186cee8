"""Options that several commands share, and small helpers for their output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from spheregen.errors import ConfigError

Part = TypeVar("Part")
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Plain lines instead of a progress bar.")]
Model = Annotated[str, typer.Argument(help="A model folder, such as a finished run.", metavar="MODEL")]
BatchSize = Annotated[int, typer.Option(help="Images in one pass through the network; does not change them.")]


def print_json(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """A line for people, on stderr: stdout is for answers."""
    print(text, file=sys.stderr, flush=True)


def output_folder(path: Path) -> Path:
    """`path`, if it can be a folder to write into.

    Raises:
        ConfigError: it is a file.
    """
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise ConfigError(f"the output path {part} is a file; choose a folder with --out")
            break
    return path


def watch(parts: Iterable[Part], count: int, batch_size: int, *, quiet: bool) -> Iterator[Part]:
    """Pass on the batches of `count` images and show progress, rate and remaining time where there are several."""
    from spheregen.training.progress import QuietReporter, default_reporter

    batches = -(-count // batch_size)
    reporter = default_reporter(quiet=quiet) if batches > 1 else QuietReporter()
    reporter.start(batches, 0, batch_size)
    try:
        for done, part in enumerate(parts, start=1):
            yield part
            reporter.step(done, None)
    finally:
        reporter.stop()


def split_list(text: str | None) -> list[str] | None:
    """`3,7,cat` as a list; None stays None.

    Raises:
        ConfigError: there is nothing between two commas.
    """
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ConfigError(f"{text!r} is not a list such as 3,7 or cat,dog")
    return items


def table(rows: Iterable[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """A plain table with aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
