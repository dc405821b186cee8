"""A run as it is set up: its folder, data, objective, step and hooks, and how its state is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from spheregen.data import Batch, Progress
from spheregen.data.loader import Batches
from spheregen.devices import available_memory, choose_device
from spheregen.distributed import World, full_tensor, local_device
from spheregen.errors import ConfigError, TrainingError
from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of_kind
from spheregen.files import parse_json, remove_leftovers, write_json
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import (
    LoadedModel,
    is_saved,
    load_any_model,
    read_architecture,
    save_model,
    save_prior,
)
from spheregen.folders.model_source import find_model
from spheregen.folders.summary import CONFIG, PRIOR, WEIGHTS
from spheregen.progress import Reporter
from spheregen.protocol import SphereGenerator
from spheregen.training.arithmetic import choose_arithmetic, compile_seconds, continued
from spheregen.training.checkpoint import FOLDER as STATE
from spheregen.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    training_state,
)
from spheregen.training.codes import SEEN_SHARE, fitted_to, most_codes
from spheregen.training.crowding import CrowdingMonitor
from spheregen.training.estimate import LONG_RUN, largest_micro_batch, memory_warning
from spheregen.training.feeding import TrainingData, open_data
from spheregen.training.frozen import build_objective
from spheregen.training.health import HealthMonitor
from spheregen.training.hooks import Hooks, RunView, TrainingHook
from spheregen.training.log import Meters, RunLog
from spheregen.training.optimizer import learning_rate
from spheregen.training.preview import FOLDER as PREVIEWS
from spheregen.training.preview import PreviewHook
from spheregen.training.recipe import recipe_differences
from spheregen.training.step import TrainingStep, micro_batches
from spheregen.training.trackers import Tracker
from spheregen.training.transfer import inherited_provenance, transfer

PROGRESS_SECONDS = 10.0
DATA_CHECK = "data-check.json"  # beside the checkpoints: which images were found to be bad
DATA_FACTS = "data facts"  # in what a run knows of itself
ARITHMETIC = "arithmetic"  # likewise
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
            self.step.calibrate(_first_batches(self.batches, self.recipe))
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


def set_up(
    recipe: Recipe, folder: Path, device: str, reporter: Reporter, world: World, hooks: Sequence[TrainingHook]
) -> Run:
    """Set up a new run, or the one that is in the folder, in each of its processes. See `train`."""
    place = choose_device(local_device(device, world))
    checkpoint = _find_checkpoint(folder, world)
    data = open_data(recipe, _known_classes(folder) if checkpoint else ())
    for line in data.notes if world.is_first else ():
        reporter.message(line)
    total = recipe.total_steps(data.count)
    start = checkpoint.step if checkpoint else 0
    base = _load_base(recipe, world) if recipe.init is not None and checkpoint is None else None
    batches = data.batches(
        world,
        place,
        start=start,
        steps=total,
        remembered=folder / STATE / DATA_CHECK,
        progress=_now_and_then(reporter),
    )
    for reason in batches.skipped:
        reporter.message(f"skipped: {reason}")
    with _first_alone(world):  # it may have to download frozen networks
        objective = build_objective(recipe, data.tokenizer())
    about = {
        "recipe": recipe.model_dump(mode="json"),
        "data": batches.fingerprint,
        DATA_FACTS: data.facts,
        **objective.facts,
        **({} if data.encoder is None else {"text": dict(data.encoder.identity)}),
    }
    if checkpoint:
        if DATA_FACTS not in checkpoint.run and checkpoint.run.get("data") == batches.earlier_fingerprint:
            # a run of a version before
            checkpoint = dataclasses.replace(checkpoint, run={**checkpoint.run, "data": batches.fingerprint})
        _refuse_changes(checkpoint, about, folder, recipe, total)
        if "init" in checkpoint.run:
            about["init"] = checkpoint.run["init"]  # the model itself is never read again
    elif (folder / WEIGHTS).exists():
        raise TrainingError(f"{folder} holds a model without training state; choose another folder with --out")
    if base is not None:
        about["init"] = _start_from(base, objective, recipe, data, reporter, world)
    # one for all: processors may differ, and so may what is measured of them
    arithmetic = choose_arithmetic(recipe, place, objective.model, total)
    if checkpoint:
        arithmetic = continued(arithmetic, checkpoint.run.get(ARITHMETIC), recipe, place)
    arithmetic = world.gather_objects(arithmetic)[0]
    about[ARITHMETIC] = arithmetic.as_dict()
    if checkpoint and checkpoint.run.get(ARITHMETIC, about[ARITHMETIC]) != about[ARITHMETIC]:
        began = checkpoint.run[ARITHMETIC]["precision"]
        reporter.message(f"the run began in {began}; this machine does it otherwise, so its numbers differ by rounding")
    precision = arithmetic.precision
    micro_batch = _micro_batch(recipe, place, precision.name, world, total, reporter)
    if checkpoint is None:
        share = world.share(recipe.train.batch_size)
        for network in objective.frozen:
            network.to(place)
        first = _first_batches(batches, recipe)
        objective.prepare(micro_batches(first, micro_batch or share.stop - share.start, place), world.gather_objects)
    step = TrainingStep(
        objective,
        recipe,
        device=place,
        precision=precision.name,
        world=world,
        micro_batch=micro_batch,
        total=total,
        compiled=arithmetic.compiled,
        tell=reporter.message,
    )
    run = Run(
        recipe=recipe,
        folder=folder,
        world=world,
        reporter=reporter,
        batches=batches,
        images=data.count,
        total=total,
        start=start,
        about=about,
        info=_info(recipe, data, objective, total, about),
        step=step,
        because=precision.because,
    )
    run.hooks = Hooks(_watchers(run, hooks), total)
    if checkpoint:
        run.meters = Meters(load_checkpoint(checkpoint, step.model, step.ema.model, step.optimizer, objective))
        run.hooks.restore(checkpoint.run)
        reporter.message(f"continuing {folder} from step {start}")
    return run


def _first_batches(batches: Batches, recipe: Recipe) -> Iterator[Batch]:
    """Give the images that statistics are measured of: the first ones in the order of the run, shared among the
    processes, so that a run that was interrupted gets the same ones."""
    images = min(CALIBRATION_IMAGES, batches.count)
    return map(batches.batch, range(-(-images // recipe.train.batch_size)))


def _known_classes(folder: Path) -> tuple[str, ...]:
    """Return the classes of the run in a folder, in the order in which its model knows them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return tuple(map(str, parse_json((folder / CONFIG).read_text(encoding="utf-8"))["class_names"]))
    return ()


def _find_checkpoint(folder: Path, world: World) -> Checkpoint | None:
    checkpoint = latest_checkpoint(folder)
    if len(set(world.gather_objects(checkpoint.step if checkpoint else 0))) > 1:
        raise TrainingError(
            f"the processes see different checkpoints in {folder}; put it on storage that all machines share"
        )
    return checkpoint


def _load_base(recipe: Recipe, world: World) -> LoadedModel:
    """Load the model that a run starts from; refused before the data is read if it is of another kind."""
    assert recipe.init is not None
    with _first_alone(world):  # it may have to download it
        folder = find_model(recipe.init)
    if type(read_architecture(folder)) is not type(recipe.model):
        raise ConfigError(
            f"the model to start from is of another kind than the recipe {recipe.name} ({recipe.kind}); give one of "
            "this kind, or train without --init"
        )
    return load_any_model(folder)


def _start_from(
    base: LoadedModel, objective: Objective, recipe: Recipe, data: TrainingData, reporter: Reporter, world: World
) -> dict[str, Any]:
    """Begin with the weights of a trained model; returns what the run must know of it when it continues."""
    assert recipe.init is not None
    found = transfer(
        objective.generator(objective.model),
        base.model,
        target_classes=data.class_names if recipe.model.num_classes else (),
        source_classes=base.info.class_names,
        learned=objective.model,
    )
    for line in found.summary():
        reporter.message(f"from {recipe.init}: {line}")
    if len(set(world.gather_objects(base.fingerprint))) > 1:
        raise TrainingError(f"the processes see different models at {recipe.init}; give all of them the same one")
    return {"provenance": inherited_provenance(recipe.init, base.info), "weights": base.fingerprint}


def _micro_batch(
    recipe: Recipe, place: torch.device, precision: str, world: World, total: int, reporter: Reporter
) -> int | None:
    """Return the micro-batch of a run, of `auto` by estimate and the same in all processes; None for the whole share.

    The user is warned where memory is not likely to suffice; runs of few steps fail soon enough.
    """
    asked = recipe.train.micro_batch
    available = available_memory(place) if total >= LONG_RUN or asked == "auto" else None
    if available is None:
        return None if asked == "auto" else asked
    if place.type == "cpu":  # which its processes share
        available //= int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    how: dict[str, Any] = {
        "precision": precision,
        "world_size": world.size,
        "device_type": place.type,
        "available": available,
    }
    if asked == "auto":
        asked = max(1, min(world.gather_objects(largest_micro_batch(recipe, **how))))
    if warning := memory_warning(recipe, micro_batch=asked, **how):
        reporter.message(f"warning: {warning}")
    return asked


def _watchers(run: Run, own: Sequence[TrainingHook]) -> list[Any]:
    """Return everything that watches a run; what is due after a step is the same in every process."""
    recipe, tell = run.recipe, run.reporter.message
    trackers = (Tracker(name, tell) for name in dict.fromkeys(recipe.train.trackers))
    only_first = [RunLog(), *trackers] if run.world.is_first else []
    health = HealthMonitor(max_angle=recipe.max_angle, warmup=recipe.warmup_steps(run.images), warn=tell)
    preview = PreviewHook(
        recipe.train.preview_every, computes=run.world.is_first or run.step.sharded, class_names=run.info.class_names
    )
    crowding = [CrowdingMonitor(torch.get_num_threads(), tell)] if run.step.device.type == "cpu" else []
    return [health, *crowding, *only_first, preview, *own]


def _info(recipe: Recipe, data: TrainingData, objective: Objective, total: int, about: Mapping[str, Any]) -> ModelInfo:
    return ModelInfo(
        class_names=data.class_names if recipe.model.num_classes else (),
        sampling=recipe.sampling.model_dump(mode="json") if member_of_kind(recipe.kind).generates else {},
        preprocessing=data.preprocessing,
        training={
            "recipe": recipe.name,
            "description": recipe.description,
            "data": data.name,
            "planned_steps": total,
            "batch_size": recipe.train.batch_size,
            "seed": recipe.train.seed,
            **_caption_facts(recipe),
            **objective.facts,
            **({"init": recipe.init} if recipe.init is not None else {}),
        },
        provenance=about.get("init", {}).get("provenance", {}),
        text={} if data.encoder is None else data.encoder.identity,
    )


def _caption_facts(recipe: Recipe) -> dict[str, Any]:
    """Return how a model that follows texts found its captions, and how often it saw none."""
    if not getattr(recipe.model, "text_width", 0):
        return {}
    found = {"captions": recipe.data.captions, "templates": list(recipe.data.templates)}
    dropout = getattr(recipe.loss, "label_dropout", None)
    return found if dropout is None else {**found, "label_dropout": dropout}


@contextlib.contextmanager
def _first_alone(world: World) -> Iterator[None]:
    """Let the first process go before the others."""
    if not world.is_first:
        world.wait_for_all()
    yield
    if world.is_first:
        world.wait_for_all()


def _now_and_then(reporter: Reporter) -> Progress:
    """Return what tells how far the decoding or checking of the images is, every ten seconds."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            reporter.message(f"decoded {done} of {total} images")

    return progress


def _refuse_changes(checkpoint: Checkpoint, now: Mapping[str, Any], folder: Path, recipe: Recipe, total: int) -> None:
    before = checkpoint.run
    differences = recipe_differences(before.get("recipe", {}), now["recipe"])
    lengths = [each for each in differences if each.startswith(("train.steps:", "train.epochs:"))]
    if lengths and total >= checkpoint.step and not recipe.bound_to_length:
        differences, lengths = [each for each in differences if each not in lengths], []
    if before.get("data") != now["data"]:
        old, new = before.get(DATA_FACTS, {}), now[DATA_FACTS]
        differing = [name for name in new if name in old and old[name] != new[name]]
        known = [f"{name} {old[name]} -> {new[name]}" for name in differing if name in ("images", "bytes")]
        if "classes" in differing:
            known.append(f"classes {', '.join(sorted({*old['classes']} ^ {*new['classes']})[:5])} come or go")
        if not differing:
            known = ["the contents of its files" if old else "its files, sizes or labels"]
        differences.append(f"the data set is another one ({'; '.join(known or differing)})")
    differences += [
        f"{name}: {before.get(name)} -> {now[name]}"
        for name in sorted(now.keys() - {"recipe", "data", DATA_FACTS})
        if before.get(name) != now[name]
    ]
    if differences:
        raise TrainingError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. "
            "Repeat the old settings to continue it, or choose another folder with --out"
            + (_another_length(checkpoint, folder, recipe, total) if lengths else "")
        )


def _another_length(checkpoint: Checkpoint, folder: Path, recipe: Recipe, total: int) -> str:
    """Tell how to train a run for longer whose length cannot be changed."""
    if total < checkpoint.step:
        return f". {checkpoint.step} steps are done: it cannot become shorter than that"
    bound = " and ".join(recipe.bound_to_length)
    return (
        f". Its steps depend on the length of the run, by {bound}: to train on, begin a new run from its weights, with "
        f"a schedule of its own: --init {folder} --out OTHER (one with optimizer.schedule=constant and without phases "
        "can itself be made longer)"
    )
