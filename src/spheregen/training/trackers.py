"""TensorBoard and Weights & Biases as hooks, beside the log that is always written.

A tracker is a convenience: once a run is under way nothing that a tracker does, a lost network or a full disk
included, stops it. The first failure is told, all values stay in `log.jsonl`.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spheregen.errors import ConfigError
from spheregen.files import write_json
from spheregen.training.hooks import RunView, Values

TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's files in a run folder."""
WANDB = "wandb.json"
"""The file of a run folder that keeps the id of its W&B run."""
PROJECT = "spheregen"
CLOSE_SECONDS = 60.0
"""How long a tracker may take to close; then it is left behind."""


class Tracker:
    """A hook that passes the log on; its failures are told once and forgiven.

    Args:
        warn: told of the first failure, in one line.
    """

    name = cure = extra = ""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._failed, self._is_open = False, False

    def on_start(self, run: RunView) -> None:
        """Open the tracker.

        Raises:
            ConfigError: a missing package, or a new run whose tracker does not open. A run that continues goes on
                without it, with a warning.
        """
        try:
            self.open(run)
            self._is_open = True
        except ImportError as error:
            raise ConfigError(
                f'the tracker {self.name} needs a package that is missing: pip install "spheregen[{self.extra}]"'
            ) from error
        except Exception as error:  # whatever a tracker raises: no network, no account, a full disk
            problem = f"{self.name} does not open: {_one_line(error)}"
            if not run.step:
                raise ConfigError(f"{problem}; {self.cure}, or train without it") from error
            self._warn(f"{problem}; the run goes on without it, and log.jsonl has all values")

    def on_log(self, step: int, values: Values) -> None:
        """Pass numbers and images on. Names without a slash appear under `train/`, but for images."""
        self._try(lambda: self.write(step, values))

    def on_end(self) -> None:
        """Write what is pending, for at most a minute."""
        # in a thread of its own, which the end of the program does not wait for
        closing = threading.Thread(target=self._try, args=(self.close,), daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            self._tell(f"did not close within {CLOSE_SECONDS:g} s")
        self._is_open = False

    def open(self, run: RunView) -> None:
        """Open for a run that starts or continues after `run.step` steps."""
        raise NotImplementedError

    def write(self, step: int, values: Values) -> None:
        """Write the values after `step` steps."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is pending."""
        raise NotImplementedError

    def _try(self, call: Callable[[], None]) -> None:
        if not self._is_open:
            return
        try:
            call()
        except Exception as error:
            self._tell(f"failed: {_one_line(error)}")

    def _tell(self, problem: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"{self.name} {problem}; the run goes on, and log.jsonl has all values")


class TensorBoard(Tracker):
    """Writes to `tensorboard/` in the run folder; what an interrupted run wrote beyond its checkpoint is hidden."""

    name, extra, cure = "tensorboard", "track", "free space or choose another place with --out"

    def open(self, run: RunView) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # events from purge_step on are hidden; those of the run's step itself were written before its checkpoint
        self._writer = SummaryWriter(str(run.folder / TENSORBOARD), purge_step=run.step + 1, flush_secs=20)
        if not run.step:
            settings = json.dumps(run.recipe.model_dump(mode="json"), indent=2)
            self._writer.add_text("config", "\n".join(f"    {line}" for line in settings.splitlines()), 0)

    def write(self, step: int, values: Values) -> None:
        import numpy as np
        from PIL import Image

        for name, value in values.items():
            if isinstance(value, Path):
                with Image.open(value) as image:
                    self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            else:
                self._writer.add_scalar(_place(name), value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """Logs to the project `spheregen` or WANDB_PROJECT; WANDB_MODE=offline works without a network.

    `wandb.json` in the run folder keeps the id, so that a continued run goes on in the same W&B run.
    """

    name, extra, cure = "wandb", "wandb", "log in with `wandb login`, set WANDB_MODE=offline"

    def open(self, run: RunView) -> None:
        import wandb

        self._wandb: Any = wandb
        path = run.folder / WANDB
        known = _run_id(path) if run.step else None  # a run that starts anew is another run
        identity = known or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.recipe.name,
            id=identity,
            resume="allow",
            config=run.recipe.model_dump(mode="json"),
            dir=str(run.folder),
        )
        if identity != known:
            write_json(path, {"id": identity})
        # W&B takes no step twice; a continued run repeats the steps since its checkpoint, with the same values
        self._first = int(self._run.step) if known else 0

    def write(self, step: int, values: Values) -> None:
        if step < self._first:
            return
        images = {name: self._wandb.Image(str(value)) for name, value in values.items() if isinstance(value, Path)}
        numbers = {_place(name): value for name, value in values.items() if not isinstance(value, Path)}
        self._run.log({**numbers, **images}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def make_trackers(names: Sequence[str], warn: Callable[[str], None]) -> list[Tracker]:
    """Return the hooks of `train.trackers`, for the first process alone; `warn` is told of their first failures."""
    return [TRACKERS[name](warn) for name in dict.fromkeys(names)]


def _place(name: str) -> str:
    return name if "/" in name else f"train/{name}"


def _run_id(path: Path) -> str | None:
    """Return the id in `wandb.json`, None where there is none or the file is broken."""
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, str) and identity else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
