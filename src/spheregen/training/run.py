"""A run that is ready for its next step: what it knows of itself, and how its state is saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from spheregen.data import Batch
from spheregen.data.loader import Batches
from spheregen.distributed import World, full_tensor
from spheregen.errors import TrainingError
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of_kind
from spheregen.files import remove_leftovers, write_json
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import (
    is_saved,
    save_model,
    save_prior,
)
from spheregen.folders.summary import PRIOR
from spheregen.progress import Reporter
from spheregen.protocol import SphereGenerator
from spheregen.training.arithmetic import compile_seconds
from spheregen.training.checkpoint import FOLDER as STATE
from spheregen.training.checkpoint import (
    latest_checkpoint,
    save_checkpoint,
    training_state,
)
from spheregen.training.codes import SEEN_SHARE, fitted_to, most_codes
from spheregen.training.hooks import Hooks, RunView
from spheregen.training.log import Meters
from spheregen.training.optimizer import learning_rate
from spheregen.training.preview import FOLDER as PREVIEWS
from spheregen.training.step import TrainingStep

CALIBRATION_IMAGES = 2048
"""The first images of a run, at least so many if there are, from which statistics of the data are measured."""


@dataclass
class Run:
    """A run that is ready to take its next step, on one of its processes."""

    recipe: Recipe
    folder: Path
    world: World
    reporter: Reporter
    batches: Batches
    images: int
    """In the data set, before any is skipped."""
    total: int
    """Optimiser steps of the whole run."""
    start: int
    """Those that are done."""
    about: Mapping[str, Any]
    """What decides the weights: recipe, fingerprint of the data, frozen networks, the model to start from."""
    info: ModelInfo
    step: TrainingStep
    because: str = ""
    """The reason of the precision."""
    meters: Meters = field(default_factory=Meters)
    hooks: Hooks = field(default_factory=lambda: Hooks((), 0))
    values: dict[str, float] = field(default_factory=dict)
    """The last entry of the log."""
    _calibrated: int | None = None
    """The step whose EMA weights the statistics of the data are of."""

    @property
    def headline(self) -> str:
        """The first line of the run, for people."""
        recipe, step = self.recipe, self.step
        parameters = sum(p.numel() for p in step.ema.model.parameters())
        facts = [step.precision + self.because]
        if "perceptual" in step.objective.facts:
            facts.append(f"perceptual loss: {step.objective.facts['perceptual']}")
        if step.micro_batch < recipe.train.batch_size // self.world.size:
            facts.append(f"micro-batches of {step.micro_batch}")
        if self.world.size > 1:
            facts.append(f"{self.world.size} processes ({'fsdp' if step.sharded else 'ddp'})")
        if step.compiled:
            seconds = compile_seconds(recipe, step.model)
            facts.append(f"compiled, which takes about {seconds:.0f} s at first")
        return (
            f"{recipe.name}: {self.images} images, {parameters / 1e6:.2f} M parameters, {self.total} steps of "
            f"{recipe.train.batch_size} on {step.device.type} in {', '.join(facts)}"
        )

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rates of all groups that learn in step 0 <= t < total, by name.

        Each has warm-up and decay over the steps in which it learns.
        """
        found = {}
        for group in self.recipe.parameter_groups:
            if step in (steps := group.steps(self.total)):
                found[group.name] = learning_rate(
                    group.optimizer,
                    step - steps.start,
                    batch_size=self.recipe.train.batch_size,
                    warmup=self.recipe.warmup_steps(self.images, group.optimizer),
                    total=len(steps),
                )
        return found

    def prepare_folder(self) -> None:
        """Make the run folder, clear what an interrupted writer left, and write the recipe."""
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for place in (self.folder, self.folder / STATE, self.folder / PREVIEWS):
                remove_leftovers(place)
            write_json(self.folder / "recipe.json", self.about["recipe"])

    def view(self, done: int) -> RunView:
        """Return the run as hooks see it after `done` steps."""
        return RunView(
            folder=self.folder,
            step=done,
            total=self.total,
            recipe=self.recipe,
            model=self.step.objective.generator(self.step.ema.model),
            values=self.values,
            first_batch=self._first_batch,
            is_first=self.world.is_first,
        )

    def check_finite(self, done: int) -> dict[str, float]:
        """Return the means since the last entry of the log.

        Raises:
            TrainingError: one is not finite.
        """
        values = self.meters.read()
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            last = latest_checkpoint(self.folder)
            kept = f"the checkpoint of step {last.step} is intact" if last else "no checkpoint was written yet"
            raise TrainingError(
                f"{', '.join(broken)} is not finite at step {done}; {kept}. "
                "Lower optimizer.lr (--set optimizer.lr=...), lengthen its warm-up, or use train.precision=float32"
            )
        return values

    def calibrate(self, done: int) -> None:
        """Give the EMA model the statistics that its weights of this step have of the data, if it needs any."""
        if self._calibrated != done:
            self.step.calibrate(first_batches(self.batches, self.recipe))
            self._calibrated = done

    def save(self, done: int) -> None:
        """Write a checkpoint and the model folder; all processes call it together."""
        self.check_finite(done)
        self.calibrate(done)
        step = self.step
        beside = step.objective.state()
        state = training_state(step.model, step.ema.model, step.optimizer, self.meters.sums, self.world, beside)
        if self.world.is_first:
            if not all(bool(tensor.isfinite().all()) for name, tensor in state.items() if name.startswith("model.")):
                raise TrainingError(
                    f"weights are not finite at step {done}; the last checkpoint is intact. Lower optimizer.lr"
                )
            about = {**self.about, **self.hooks.state()}
            save_checkpoint(self.folder, done, state, about=about, keep=self.recipe.train.keep)
        del state
        self.save_model(done)

    def save_model(self, done: int) -> None:
        """Write the model folder, unless a complete run has these EMA weights in it already.

        A run may have died after its last checkpoint and before its model.
        """
        model = self.step.objective.generator(self.step.ema.model)
        tensors = {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}
        if self.world.is_first and not (done == self.start and is_saved(self.folder, model, tensors)):
            info = dataclasses.replace(self.info, training={**self.info.training, "steps": done})
            save_model(self.folder, model, info, title=self.recipe.name, state=tensors)

    def fit_prior(self) -> None:
        """Fit the prior of the complete run's codes and put it beside its weights, unless one is there."""
        member = member_of_kind(self.recipe.kind)
        there = self.world.gather_objects((self.folder / PRIOR).exists())[0]
        if there or not member.generates or not self.recipe.train.fit_prior:
            return
        model = cast(SphereGenerator, self.step.objective.generator(self.step.ema.model))
        batch = self.recipe.train.batch_size
        images = min(self.batches.count, int(SEEN_SHARE * self.total * batch), most_codes(model))
        seen = map(self.batches.batch, range(max(1, images // batch)))
        prior = fitted_to(
            model,
            ((each.inputs, each.labels) for each in seen),
            encoded=member.inputs == "latents",
            world=self.world,
        )
        if self.world.is_first:
            save_prior(self.folder, prior, {"data": self.info.training["data"], "images": images})

    def _first_batch(self) -> Batch:
        first = self.batches.batch(0)
        return dataclasses.replace(first, inputs=first.inputs.to(self.step.device))


def first_batches(batches: Batches, recipe: Recipe) -> Iterator[Batch]:
    """Give the images that statistics are measured of: the first ones in the order of the run, shared among the
    processes, so that a run that was interrupted gets the same ones."""
    images = min(CALIBRATION_IMAGES, batches.count)
    return map(batches.batch, range(-(-images // recipe.train.batch_size)))
