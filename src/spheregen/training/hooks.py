"""Everything that watches a run, ours and a user's, is a hook: previews, warnings, the log, trackers, scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from spheregen.data import Batch
from spheregen.family.recipe import Recipe

Values = Mapping[str, float | Path]
"""Numbers for the log and the trackers, and image files for the trackers, by name."""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run as hooks see it. They must leave the model as it is: weights, mode and device."""

    folder: Path
    """The run folder; a hook may write files of its own there."""
    step: int
    """Optimiser steps that are done."""
    total: int
    """Optimiser steps of the whole run."""
    recipe: Recipe
    model: Any
    """The EMA model with its frozen networks, in evaluation mode: what is saved and sampled."""
    values: Mapping[str, float] = field(default_factory=dict)
    """The last entry of the log; empty before the first."""
    first_batch: Callable[[], Batch]
    """Return the first batch of the run (this process's rows of it), on the model's device."""
    is_first: bool = True
    """Whether this process writes files."""


class TrainingHook(Protocol):
    """Code that looks at a run while it trains, called after every `every` steps and after the last one.

    In a distributed run every process calls it with the same model, because a sharded model computes only where all
    take part; what the first process returns is logged. An exception stops the run. A hook that draws random numbers
    brings a generator of its own, so that a run is the same with it and without.

    A hook may have more methods, each of them optional, and then needs no `after_step`:
    `on_start(run)` before the first step; `on_log(step, values)` for each entry of the log, and for what the hooks
    return; `on_end()` at the end, however it comes; `name`, `state()` and `restore(state)` for plain values that a
    checkpoint keeps.
    """

    @property
    def every(self) -> int:
        """Steps between two calls; 0 for none."""

    def after_step(self, run: RunView, step: int) -> Values | None:
        """Look at the run after `step` steps, without gradients.

        Returns:
            Numbers for the log and the trackers and image files for the trackers, or None. Give the names a prefix of
            your own and a slash, such as `heldout/psnr`: it keeps them apart from the names of the run, and trackers
            sort by it.
        """


class Hooks:
    """The hooks of a run, called as one and in their order.

    Args:
        hooks: anything with some of the methods of `TrainingHook`.
        total: steps of the run, after which every hook is due.
    """

    def __init__(self, hooks: Sequence[Any], total: int) -> None:
        self._hooks, self._total = tuple(hooks), total

    def start(self, run: RunView) -> None:
        """Call `on_start`."""
        self._call("on_start", run)

    def log(self, step: int, values: Values) -> None:
        """Call `on_log` with an entry of the log."""
        self._call("on_log", step, values)

    def end(self) -> None:
        """Call `on_end` of every hook, whatever the others do."""
        with contextlib.ExitStack() as stack:
            for hook in self._hooks:
                if hasattr(hook, "on_end"):
                    stack.callback(hook.on_end)

    def due(self, step: int) -> list[Any]:
        """Return the hooks that want to see the model after this step; the same on every process."""
        due = []
        for hook in self._hooks:
            every = getattr(hook, "every", 0)
            if every and (step % every == 0 or step == self._total):
                due.append(hook)
        return due

    @torch.no_grad()
    def after_step(self, run: RunView) -> None:
        """Call `after_step` of the hooks that are due, and log what they return."""
        for hook in self.due(run.step):
            if values := hook.after_step(run, run.step):
                self.log(run.step, values)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the hooks, by their names."""
        return {hook.name: hook.state() for hook in self._hooks if hasattr(hook, "state")}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Give hooks back what a checkpoint kept of them."""
        for hook in self._hooks:
            if hasattr(hook, "state") and hook.name in saved:
                hook.restore(saved[hook.name])

    def _call(self, method: str, *arguments: object) -> None:
        for hook in self._hooks:
            if hasattr(hook, method):
                getattr(hook, method)(*arguments)
