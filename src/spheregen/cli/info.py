"""`spheregen info`: parameters, cost, memory and time of a model or recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError
from spheregen.files import parse_json

if TYPE_CHECKING:
    import torch

    from spheregen.family.recipe import Recipe
    from spheregen.measure.precision import Precision

SAMPLING_BATCH = 16
COUNTS = ("batch", "micro_batch", "processes")  # the other whole numbers of memory are bytes


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

    from spheregen.data import open_source
    from spheregen.family.registry import cost_of
    from spheregen.folders.model_folder import read_architecture
    from spheregen.folders.model_source import find_model
    from spheregen.measure.precision import Precision
    from spheregen.nn.uninitialised import weightless
    from spheregen.training.arithmetic import choose_arithmetic
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
        recipe = build_recipe(parse_json(of_run.read_text("utf-8")), str(of_run)) if of_run.is_file() else None
    else:
        recipe = load_recipe(target, settings or (), data=data)
        config = recipe.model
    if time and recipe is None:
        raise ConfigError(f"{target} has no recipe.json, so there is no training whose time could be told")
    place, is_here = _place(cli.everywhere.device, must_be_here=time)
    with weightless():
        model = blank_of_recipe(recipe, tokenizer) if folder is None else blank_of_folder(folder, tokenizer)
    cost = cost_of(model)
    tokens, channels = model.latent_shape
    parameters = sum(part.params for part in cost.parts.values())
    found: dict[str, Any] = {
        "name": target,
        **cost.as_dict(),
        "image_size": config.image_size,
        "num_classes": getattr(config, "num_classes", 0),
        **({"text_width": width} if (width := getattr(config, "text_width", 0)) else {}),
        "latent": {"tokens": tokens, "channels": channels, "numbers": tokens * channels},
        "weights_bytes": 4 * parameters,
        "sampling_memory": None,
        "memory": None,
        "time": None,
    }
    if "generation_gflops" in found:
        found["sampling_memory"] = estimate_sampling_memory(config, tokens, SAMPLING_BATCH, parameters)
    if recipe is not None:
        images = None
        if (data or time) and recipe.data.source is not None:
            images = len(open_source(recipe.data.source, split=recipe.data.split))
        precision = Precision("bf16" if place.type == "cuda" else "float32", "it is not in this machine")
        if is_here or recipe.train.precision != "auto":
            precision = choose_arithmetic(recipe, place, model, recipe.train.steps or 0).precision
        found["memory"] = _memory(recipe, place, is_here, precision, processes, images)
        if time:
            found["time"] = estimate_time(recipe, images, place, precision.name, world_size=processes).as_dict()
    cli.answer(found, lambda: _text(found, list(cost.parts)))


def _is_model(target: str) -> bool:
    """Whether a name means a model, not a recipe; where both have one name they are the same network."""
    from spheregen.folders.summary import bundled_models
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


def _memory(
    recipe: Recipe, place: torch.device, is_here: bool, precision: Precision, processes: int, images: int | None
) -> dict[str, Any]:
    from spheregen.devices import available_memory
    from spheregen.training.estimate import estimate_memory, largest_micro_batch, memory_warning

    available = available_memory(place) if is_here else None
    how: dict[str, Any] = {"precision": precision.name, "world_size": processes, "device_type": place.type}
    micro_batch = None if recipe.train.micro_batch == "auto" else recipe.train.micro_batch
    if micro_batch is None and available is not None:
        micro_batch = largest_micro_batch(recipe, available=available, **how)
    estimate = estimate_memory(recipe, micro_batch=micro_batch, images=images, **how)
    return {
        **estimate.as_dict(),
        "device": place.type,
        "precision": precision.name,
        "precision_reason": precision.reason or None,
        "processes": processes,
        "available": available,
        "warning": available and memory_warning(recipe, precision.name, place.type, processes, micro_batch, available),
    }


def _text(found: dict[str, Any], parts: list[str]) -> str:
    """The answer for people: sizes with their units, the networks as one table."""
    from spheregen.training.estimate import readable

    values = {key: value for key, value in found.items() if value is not None and key not in parts}
    values["weights_bytes"] = readable(found["weights_bytes"])
    for name in {"sampling_memory", "memory"} & values.keys():
        values[name] = {
            key: readable(value) if isinstance(value, int) and key not in COUNTS else value
            for key, value in found[name].items()
        }
    return cli.details({**values, "part": {name: found[name] for name in parts}})
