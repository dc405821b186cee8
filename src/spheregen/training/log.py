"""The log of a run: running means on the device, one JSON line at each interval."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spheregen.errors import SphereGenError
from spheregen.files import parse_json, write_text
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
        """Return the means since the last reset; this waits for the device."""
        if not self.sums:
            return {}
        values = dict(zip(self.sums, torch.stack([*self.sums.values()]).tolist(), strict=True))
        return {name: values[name] / values[name + _COUNT] for name in values if not name.endswith(_COUNT)}

    def reset(self) -> None:
        """Begin anew."""
        self.sums.clear()


class RunLog:
    """The hook that writes `log.jsonl` in a run folder."""

    path: Path

    def on_start(self, run: RunView) -> None:
        """Open the log of a run that starts or continues: lines beyond its step are dropped."""
        self.path, kept = run.folder / LOG, ""
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # it was being written when the run was killed
                kept += f"{line}\n" if parse_json(line)["step"] <= run.step else ""
        if self.path.exists():
            write_text(self.path, kept)

    def on_log(self, step: int, values: Values) -> None:
        """Append the numbers of an entry as one line.

        Raises:
            SphereGenError: the file cannot be written.
        """
        numbers = {name: value for name, value in values.items() if not isinstance(value, Path)}
        try:
            if numbers:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            problem = error.strerror or error
            raise SphereGenError(f"cannot write {self.path}: {problem}; free space and run again") from error
