"""A run is set up: its folder, data, objective, arithmetic, step and hooks, new or from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spheregen.data import Progress
from spheregen.devices import available_memory, choose_device
from spheregen.distributed import World, local_device
from spheregen.errors import ConfigError, TrainingError
from spheregen.family.objective import Objective
from spheregen.family.recipe import Recipe
from spheregen.family.registry import member_of_kind
from spheregen.files import parse_json
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import (
    LoadedModel,
    load_any_model,
    read_architecture,
)
from spheregen.folders.model_source import find_model
from spheregen.folders.summary import CONFIG, WEIGHTS
from spheregen.progress import Reporter
from spheregen.training.arithmetic import choose_arithmetic, continued
from spheregen.training.checkpoint import FOLDER as STATE
from spheregen.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
)
from spheregen.training.crowding import CrowdingMonitor
from spheregen.training.estimate import LONG_RUN, largest_micro_batch, memory_warning
from spheregen.training.feeding import TrainingData, open_data
from spheregen.training.frozen import build_objective
from spheregen.training.health import HealthMonitor
from spheregen.training.hooks import Hooks, TrainingHook
from spheregen.training.log import Meters, RunLog
from spheregen.training.preview import PreviewHook
from spheregen.training.recipe import recipe_differences
from spheregen.training.run import Run, first_batches
from spheregen.training.step import TrainingStep, micro_batches
from spheregen.training.trackers import Tracker
from spheregen.training.transfer import inherited_provenance, transfer

PROGRESS_SECONDS = 10.0
DATA_CHECK = "data-check.json"  # beside the checkpoints: which images were found to be bad
DATA_FACTS = "data facts"  # in what a run knows of itself
ARITHMETIC = "arithmetic"  # likewise


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
    arithmetic = choose_arithmetic(recipe, place, objective.model, total)
    if checkpoint:
        arithmetic = continued(arithmetic, checkpoint.run.get(ARITHMETIC), recipe, place)
    # one for all: processors may differ, and so may what is measured of them
    arithmetic = world.gather_objects(arithmetic)[0]
    about[ARITHMETIC] = arithmetic.as_dict()
    if checkpoint and checkpoint.run.get(ARITHMETIC, about[ARITHMETIC]) != about[ARITHMETIC]:
        began = checkpoint.run[ARITHMETIC]
        ways = (f"{way['precision']}{', compiled' * way['compiled']}" for way in (began, about[ARITHMETIC]))
        reporter.message("the run began in {} and goes on in {}: its numbers differ by rounding".format(*ways))
    precision = arithmetic.precision
    micro_batch = _micro_batch(recipe, place, precision.name, world, total, reporter)
    if checkpoint is None:
        share = world.share(recipe.train.batch_size)
        for network in objective.frozen:
            network.to(place)
        first = first_batches(batches, recipe)
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
