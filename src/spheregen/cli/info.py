"""`spheregen info`: parameters, cost, memory and time of a model or recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from spheregen.family.recipe import Recipe
    from spheregen.measure.cost import Cost

SAMPLING_BATCH = 16
MEMORY = ("weights", "gradients", "moments", "ema", "frozen", "activations", "data")
"""Parts of the memory of training that are shown."""


def info(
    target: cli.ModelOrRecipe,
    settings: cli.RecipeSet = None,
    data: cli.Data = None,
    processes: Annotated[int, Option(help="Processes that share the training.")] = 1,
    time: Annotated[
        bool, Option("--time", help="Calibrate for about ten seconds, and estimate how long training takes.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        Option(help="Of a latent denoiser: a tokenizer, or the name of a published one, instead of its own."),
    ] = None,
) -> None:
    """Parameters, GFLOPs and memory of a model or recipe, and the time of its training. Allocates no weights.

    GFLOPs are counted by the convention of the published tables. For memory alone, --device need not be in this
    machine.

    Examples:
        spheregen info digits
        spheregen info cifar10 --device cuda --set train.micro_batch=128 --processes 8
        spheregen info mine.yaml --data photos/ --time
    """
    import torch

    from spheregen.family.registry import cost_of
    from spheregen.folders.model_folder import read_architecture
    from spheregen.folders.model_source import find_model
    from spheregen.training.estimate import estimate_sampling_memory, estimate_time
    from spheregen.training.frozen import blank_of_folder, blank_of_recipe
    from spheregen.training.recipe import build_recipe, load_recipe

    if processes < 1:
        raise ConfigError(f"--processes is at least 1, not {processes}")
    recipe: Any
    folder: Path | None = None
    if _is_model(target):
        if settings or data:
            raise ConfigError(f"{target} is a trained model; --set and --data change recipes only")
        folder = find_model(target)
        config = read_architecture(folder)
        of_run = folder / "recipe.json"
        recipe = build_recipe(json.loads(of_run.read_text("utf-8")), str(of_run)) if of_run.is_file() else None
    else:
        recipe = load_recipe(target, settings or (), data=data)
        config = recipe.model
    if time and recipe is None:
        raise ConfigError(f"{target} has no recipe.json, so there is no training whose time could be told")
    place, is_here = _place(cli.everywhere.device, must_be_here=time)
    with torch.device("meta"):
        model = blank_of_recipe(recipe, tokenizer) if folder is None else blank_of_folder(folder, tokenizer)
    cost = cost_of(model)
    tokens, channels = model.latent_shape
    parameters = sum(part.params for part in cost.parts.values())
    found: dict[str, Any] = {
        "name": target,
        **cost.as_dict(),
        "image_size": config.image_size,
        "num_classes": getattr(config, "num_classes", 0),
        "latent": {"tokens": tokens, "channels": channels, "numbers": tokens * channels},
        "weights_bytes": 4 * parameters,
        "sampling_memory": None,
        "memory": None,
        "time": None,
    }
    if "generation_gflops" in found:
        found["sampling_memory"] = estimate_sampling_memory(config, tokens, SAMPLING_BATCH, parameters)
    if recipe is not None:
        images = _count_images(recipe) if data or time else None
        precision = _precision(recipe, place, is_here)
        found["memory"] = _memory(recipe, place, is_here, precision, processes, images)
        if time:
            found["time"] = estimate_time(recipe, images, place, precision, world_size=processes).as_dict()
    cli.answer(found, lambda: "\n".join(_lines(found, cost, recipe)))


def _is_model(target: str) -> bool:
    """Whether a name means a model, not a recipe; where both have one name they are the same network."""
    from spheregen.folders.model_source import bundled_models
    from spheregen.training.recipe import shipped_recipes

    path = Path(target)
    if path.is_dir():
        return True
    if path.is_file() or path.suffix.lower() in (".yaml", ".yml") or target in shipped_recipes():
        return False
    return "/" in target or target in bundled_models()


def _place(name: str, *, must_be_here: bool) -> tuple[torch.device, bool]:
    """The device, and whether it is in this machine."""
    import torch

    from spheregen.devices import choose_device

    try:
        return choose_device(name), True
    except ConfigError:
        if must_be_here or name.partition(":")[0] not in ("cuda", "mps"):
            raise
        return torch.device(name), False


def _count_images(recipe: Recipe) -> int | None:
    from spheregen.data import open_source

    if recipe.data.source is None:
        return None
    return len(open_source(recipe.data.source, split=recipe.data.split))


def _precision(recipe: Recipe, place: torch.device, is_here: bool) -> str:
    from spheregen.devices import choose_precision

    if recipe.train.precision == "auto" and not is_here:
        return "bf16" if place.type == "cuda" else "float32"
    return choose_precision(recipe.train.precision, place)


def _memory(
    recipe: Recipe, place: torch.device, is_here: bool, precision: str, processes: int, images: int | None
) -> dict[str, Any]:
    from spheregen.devices import available_memory
    from spheregen.training.estimate import estimate_memory, largest_micro_batch, memory_warning

    available = available_memory(place) if is_here else None
    how: dict[str, Any] = {"precision": precision, "world_size": processes, "device_type": place.type}
    micro_batch = None if recipe.train.micro_batch == "auto" else recipe.train.micro_batch
    if micro_batch is None and available is not None:
        micro_batch = largest_micro_batch(recipe, available=available, **how)
    estimate = estimate_memory(recipe, micro_batch=micro_batch, images=images, **how)
    return {
        **estimate.as_dict(),
        "device": place.type,
        "precision": precision,
        "processes": processes,
        "available": available,
        "warning": available and memory_warning(recipe, precision, place.type, processes, micro_batch, available),
    }


def _lines(found: dict[str, Any], cost: Cost, recipe: Recipe | None) -> Iterator[str]:
    """The answer for people."""
    from spheregen.training.estimate import readable

    latent, classes, memory, time = found["latent"], found["num_classes"], found["memory"], found["time"]
    sampling = found["sampling_memory"]
    kind = "a tokenizer" if sampling is None else f"{classes} classes" if classes else "unconditional"
    yield f"{found['name']}: {found['image_size']} px, {kind}, latent {latent['tokens']} x {latent['channels']}"
    parts = [
        (name.replace("_", " "), f"{part.params / 1e6:.2f}", part.gflops, part.counted_gflops)
        for name, part in cost.parts.items()
    ]
    yield cli.table(parts, ("part", "M parameters", "GFLOPs/image", "with attention"))
    yield f"float32 weights: {readable(found['weights_bytes'])}"
    for key, title in (("generation_gflops", "GFLOPs to generate"), ("refinement_gflops", "and to refine")):
        if totals := found.get(key):
            steps = [f"{step} step{'s' if step != '1' else ''}" for step in next(iter(totals.values()))]
            yield cli.table([(name, *values.values()) for name, values in totals.items()], (title, *steps))
    if sampling is not None:
        yield f"memory to generate {SAMPLING_BATCH} at a time: {readable(sampling['total'])}"
    if memory is not None:
        many = f", in each of {memory['processes']} processes" if memory["processes"] > 1 else ""
        yield (
            f"memory to train with {memory['micro_batch']} images a pass on {memory['device']} in "
            f"{memory['precision']}{many}: about {readable(memory['total'])}"
        )
        yield cli.table([(name, readable(memory[name])) for name in MEMORY if memory[name]], ("part", "memory"))
        if memory["available"] is not None:
            yield f"available: {readable(memory['available'])}"
        if memory["warning"]:
            yield f"warning: {memory['warning']}"
    if time is not None:
        speed = f"{time['mfu']:.0%} of the measured {time['peak_flops'] / 1e9:.4g} GFLOP/s (from {time['method']})"
        yield f"time: {time['seconds_per_step']:.3g} s a step, {speed}"
        if time["hours"] is not None:
            yield f"the run of {time['steps']} steps: {_duration(time['hours'])}"
        else:
            assert recipe is not None
            yield (
                f"an epoch over 1000 images: {_duration(time['hours_per_1000_images_epoch'])}; name your images with "
                f"--data for the whole run of {recipe.train.epochs:g} epochs"
            )


def _duration(hours: float) -> str:
    for unit, length, least in (("days", 24.0, 48.0), ("hours", 1.0, 1.0), ("minutes", 1 / 60, 1 / 60)):
        if hours >= least:
            return f"{hours / length:.3g} {unit}"
    return f"{hours * 3600:.3g} seconds"
