"""TensorBoard and Weights & Biases as hooks, beside the log that is always written.

A tracker is a convenience: once a run is under way nothing that a tracker does, a lost network or a full disk
included, stops it. The first failure is told, all values stay in `log.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spheregen.errors import ConfigError
from spheregen.files import parse_json, write_json
from spheregen.training.hooks import RunView, Values

CLOSE_SECONDS = 60.0
"""How long a tracker may take to close; then it is left behind."""

Write = Callable[[int, dict[str, Any], dict[str, Path]], object]
"""Writes the numbers and image files, by name, after so many steps."""
Close = Callable[[], object]


def open_tensorboard(run: RunView) -> tuple[Write, Close]:
    """Write to `tensorboard/` in the run folder; what an interrupted run wrote beyond its checkpoint is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    # events from purge_step on are hidden; those of the run's step itself were written before its checkpoint
    writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1, flush_secs=20)
    if not run.step:
        settings = json.dumps(run.recipe.model_dump(mode="json"), indent=2)
        writer.add_text("config", "\n".join(f"    {line}" for line in settings.splitlines()), 0)

    def write(step: int, numbers: dict[str, Any], images: dict[str, Path]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        for name, path in images.items():
            with Image.open(path) as image:
                writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    return write, writer.close


def open_wandb(run: RunView) -> tuple[Write, Close]:
    """Log to the project `spheregen` or WANDB_PROJECT; WANDB_MODE=offline works without a network.

    `wandb.json` in the run folder keeps the id, so that a continued run goes on in the same W&B run.
    """
    import wandb

    path, known = run.folder / "wandb.json", None
    if run.step:  # a run that starts anew is another run
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = parse_json(path.read_text(encoding="utf-8"))["id"]
    identity = known or uuid.uuid4().hex[:12]
    tracked: Any = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "spheregen",
        name=run.recipe.name,
        id=identity,
        resume="allow",
        config=run.recipe.model_dump(mode="json"),
        dir=str(run.folder),
    )
    write_json(path, {"id": identity})
    first = int(tracked.step) if known else 0

    def write(step: int, numbers: dict[str, Any], images: dict[str, Path]) -> None:
        # W&B takes no step twice; a continued run repeats the steps since its checkpoint, with the same values
        if step >= first:
            tracked.log({**numbers, **{name: wandb.Image(str(path)) for name, path in images.items()}}, step=step)

    return write, tracked.finish


TRACKERS: dict[str, tuple[Callable[[RunView], tuple[Write, Close]], str, str]] = {
    "tensorboard": (open_tensorboard, "track", "free space or choose another place with --out"),
    "wandb": (open_wandb, "wandb", "log in with `wandb login`, set WANDB_MODE=offline"),
}
"""Each with the extra that installs it, and the cure where it does not open."""


class Tracker:
    """A hook that passes the log on; its failures are told once and forgiven.

    Args:
        name: one of `TRACKERS`.
        warn: told of the first failure, in one line.
    """

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self.name, self._warn = name, warn
        self._opened: tuple[Write, Close] | None = None
        self._failed = False

    def on_start(self, run: RunView) -> None:
        """Open the tracker.

        Raises:
            ConfigError: a missing package, or a new run whose tracker does not open. A run that continues goes on
                without it, with a warning.
        """
        opens, extra, cure = TRACKERS[self.name]
        try:
            self._opened = opens(run)
        except ImportError as error:
            raise ConfigError(
                f'the tracker {self.name} needs a package that is missing: pip install "spheregen[{extra}]"'
            ) from error
        except Exception as error:  # whatever a tracker raises: no network, no account, a full disk
            if not run.step:
                problem = f"{self.name} does not open: {' '.join(str(error).split())}"
                raise ConfigError(f"{problem}; {cure}, or train without it") from error
            self._tell(error)

    def on_log(self, step: int, values: Values) -> None:
        """Pass numbers and images on. Numbers without a slash in their names appear under `train/`."""
        numbers = {name if "/" in name else f"train/{name}": v for name, v in values.items() if not isinstance(v, Path)}
        images = {name: value for name, value in values.items() if isinstance(value, Path)}
        if self._opened:
            write, _ = self._opened
            self._try(lambda: write(step, numbers, images))

    def on_end(self) -> None:
        """Write what is pending, for at most a minute."""
        if self._opened:
            # in a thread of its own, which the end of the program does not wait for
            closing = threading.Thread(target=self._try, args=(self._opened[1],), daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
            if closing.is_alive():
                self._tell(TimeoutError(f"not closed within {CLOSE_SECONDS:g} s"))
        self._opened = None

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            problem = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{self.name} failed: {problem}; the run goes on, and log.jsonl has all values")
