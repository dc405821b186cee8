"""The log of a run: running means on the device, one JSON line at each interval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spheregen.errors import SphereGenError
from spheregen.files import write_text
from spheregen.training.hooks import RunView, Values

LOG = "log.jsonl"
_COUNT = "|count"
"""Ends the key of how often a value was added: not every step has every value."""


class Meters:
    """Running means that stay on the device until they are read."""

    def __init__(self, sums: Mapping[str, Tensor] | None = None) -> None:
        self.sums: dict[str, Tensor] = dict(sums or {})

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's values."""
        for name, value in values.items():
            wide = value.detach()
            wide = wide if wide.device.type == "mps" else wide.double()  # Apple's GPUs have no float64
            for key, more in ((name, wide), (f"{name}{_COUNT}", torch.ones_like(wide))):
                self.sums[key] = self.sums[key] + more if key in self.sums else more

    def read(self) -> dict[str, float]:
        """The means since the last reset; this waits for the device."""
        if not self.sums:
            return {}
        keys = list(self.sums)
        values = dict(zip(keys, torch.stack([self.sums[key] for key in keys]).tolist(), strict=True))
        return {name: values[name] / values[name + _COUNT] for name in keys if not name.endswith(_COUNT)}

    def reset(self) -> None:
        self.sums.clear()


class RunLog:
    """The hook that writes `log.jsonl` in a run folder.

    Lines beyond the step that a run continues from are dropped first.
    """

    path: Path

    def on_start(self, run: RunView) -> None:
        """Open the log of a run that starts or continues."""
        self.path = run.folder / LOG
        if self.path.exists():
            write_text(self.path, "".join(line + "\n" for line in _lines_up_to(self.path, run.step)))

    def on_log(self, step: int, values: Values) -> None:
        """Append the numbers of an entry as one line.

        Raises:
            SphereGenError: the file cannot be written.
        """
        numbers = {name: value for name, value in values.items() if not isinstance(value, Path)}
        if not numbers:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            raise SphereGenError(
                f"cannot write {self.path}: {error.strerror or error}; free space and run again"
            ) from error


def _lines_up_to(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that was being written when the run was killed
            continue
        if isinstance(entry, dict) and entry.get("step", 0) <= step:
            kept.append(line)
    return kept
