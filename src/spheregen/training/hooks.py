"""Code of a user's own that looks at a run while it trains, for example to score the model on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from spheregen.models.protocol import SphereGenerator


@dataclass(frozen=True)
class RunView:
    """What a hook may look at. It must leave the model as it is: weights, mode and device."""

    folder: Path
    """The run folder; a hook may write files of its own there."""
    model: SphereGenerator
    """The averaged model, in evaluation mode: what is saved and sampled."""
    recipe: str
    """The recipe's name."""
    step: int
    """Optimiser steps that are done."""


class TrainingHook(Protocol):
    """Called after every `every` optimiser steps and after the last one, without gradients.

    In a distributed run every process calls it with the same model, because a sharded model computes only where all
    take part; what the first process returns is logged. An exception stops the run. A hook that draws random numbers
    brings a generator of its own, so that a run is the same with it and without.
    """

    @property
    def every(self) -> int:
        """Steps between two calls, at least 1."""

    def after_step(self, run: RunView, step: int) -> Mapping[str, float] | None:
        """Look at the run after `step` steps.

        Returns:
            Numbers for the log and the trackers, or None. Give the names a prefix of your own and
            a slash, such as `heldout/psnr`: it keeps them apart from the names of the run, and trackers sort by it.
        """
