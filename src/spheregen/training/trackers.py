"""TensorBoard and Weights & Biases, beside the log that is always written.

A tracker is a convenience: once a run is under way nothing that a tracker does, a lost network or a full disk
included, stops it. The first failure is told, all values stay in `log.jsonl`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from spheregen.errors import ConfigError, did_you_mean
from spheregen.files import write_json

TrackerName = Literal["tensorboard", "wandb"]
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's files in a run folder."""
WANDB = "wandb.json"
"""The file of a run folder that keeps the id of its W&B run."""
PROJECT = "spheregen"
_CURES = {
    "tensorboard": "free space or choose another place with --out",
    "wandb": "log in with `wandb login`, set WANDB_MODE=offline",
}
CLOSE_SECONDS = 60.0
"""How long a tracker may take to close; then it is left behind."""


class Tracker(Protocol):
    """Where the numbers and pictures of a run go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values after `step` steps. Names without a slash appear under `train/`."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A picture file that shows the run after `step` steps."""

    def close(self) -> None:
        """Write what is pending; at most a minute. The tracker is not used after that."""


def open_trackers(
    names: Sequence[TrackerName],
    run: Path,
    *,
    name: str,
    config: Mapping[str, Any],
    start_step: int,
    warn: Callable[[str], None] | None = None,
) -> list[Tracker]:
    """Open trackers for a run that starts or continues after `start_step` steps.

    TensorBoard writes to `tensorboard/` in the run folder; what an interrupted run wrote beyond `start_step` is
    hidden. W&B logs to the project `spheregen` (or WANDB_PROJECT); `wandb.json` in the run folder keeps the id, so
    that a continued run goes on in the same W&B run. WANDB_MODE=offline works without a network.

    Args:
        names: which; an unknown or repeated name is an error.
        run: the run folder; it exists.
        name: what the run is called in W&B.
        config: the settings of the run, plain values.
        start_step: steps that are done already, 0 for a new run.
        warn: hears of the first failure of each tracker, one line; by default a warning of the `spheregen` logger.

    Returns:
        Trackers whose methods never raise. On rank 0 only; other processes open none.

    Raises:
        ConfigError: an unknown name, a missing package, or a tracker that a new run cannot open. A run that continues
            goes on without a tracker that does not open, with a warning.
    """
    warn = warn or logging.getLogger("spheregen").warning
    known = get_args(TrackerName)
    for tracker in names:
        if tracker not in known:
            raise ConfigError(f"unknown tracker {tracker!r}{did_you_mean(tracker, known)}; use {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"a tracker is named twice: {', '.join(names)}")
    opened: list[Tracker] = []
    for tracker in names:
        kind = _TensorBoard if tracker == "tensorboard" else _WeightsAndBiases
        try:
            opened.append(_Guarded(tracker, kind(run, name=name, config=config, start_step=start_step), warn))
        except ConfigError:
            _close(opened)
            raise
        except Exception as error:  # whatever a tracker raises: no network, no account, a full disk
            problem = f"{tracker} does not open: {_one_line(error)}"
            if not start_step:
                _close(opened)
                raise ConfigError(f"{problem}; {_CURES[tracker]}, or train without it") from error
            warn(f"{problem}; the run goes on without it, and log.jsonl has all values")
    return opened


class _Guarded:
    """A tracker whose failures are told once and forgiven."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self.name, self.tracker, self.warn = name, tracker, warn
        self.failed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self.tracker.log(step, values))

    def image(self, step: int, name: str, path: Path) -> None:
        self._try(lambda: self.tracker.image(step, name, path))

    def close(self) -> None:
        # in a thread of its own, which the end of the program does not wait for
        closing = threading.Thread(target=self._try, args=(self.tracker.close,), daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            self._tell(f"did not close within {CLOSE_SECONDS:g} s")

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._tell(f"failed: {_one_line(error)}")

    def _tell(self, problem: str) -> None:
        if not self.failed:
            self.failed = True
            self.warn(f"{self.name} {problem}; the run goes on, and log.jsonl has all values")


class _TensorBoard:
    def __init__(self, run: Path, *, name: str, config: Mapping[str, Any], start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                'the tracker tensorboard needs a package that is missing: pip install "spheregen[track]"'
            ) from error
        # events from purge_step on are hidden; those of start_step itself were written before its checkpoint
        self.writer = SummaryWriter(str(run / TENSORBOARD), purge_step=start_step + 1, flush_secs=20)
        if not start_step:
            settings = json.dumps({"name": name, **config}, indent=2, default=str)
            self.writer.add_text("config", "\n".join(f"    {line}" for line in settings.splitlines()), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(_place(name), value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        import numpy as np

        from spheregen.data.images import read_image

        pixels = np.asarray(read_image(path).convert("RGB"))
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, run: Path, *, name: str, config: Mapping[str, Any], start_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                'the tracker wandb needs a package that is missing: pip install "spheregen[wandb]"'
            ) from error
        self.wandb: Any = wandb
        path = run / WANDB
        known = _run_id(path) if start_step else None  # a run that starts anew is another run
        identity = known or uuid.uuid4().hex[:12]
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            id=identity,
            resume="allow",
            config=dict(config),
            dir=str(run),
        )
        if identity != known:
            write_json(path, {"id": identity})
        # W&B takes no step twice; a continued run repeats the steps since its checkpoint, with the same values
        self.first = int(self.run.step) if known else 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.first:
            self.run.log({_place(name): value for name, value in values.items()}, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        if step >= self.first:
            self.run.log({name: self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


def _place(name: str) -> str:
    return name if "/" in name else f"train/{name}"


def _run_id(path: Path) -> str | None:
    """The id in `wandb.json`, None where there is none or the file is broken."""
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, str) and identity else None


def _close(trackers: Sequence[Tracker]) -> None:
    for tracker in trackers:
        tracker.close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
