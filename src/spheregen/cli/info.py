"""`spheregen info`: parameters, cost, memory and time of a model or recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spheregen.cli.options import Json, print_json, table

if TYPE_CHECKING:
    import torch

    from spheregen.evaluation.cost import GeneratorCost, TokenizerCost
    from spheregen.training.recipe import Recipe

SAMPLING_BATCH = 16


def info(
    target: Annotated[
        str, typer.Argument(help="A model folder, a shipped recipe or a YAML file.", metavar="MODEL|RECIPE")
    ],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe, a.b=c.")] = None,
    data: Annotated[str | None, typer.Option(help="Images, for the length of the run and the memory of its data.")] = (
        None
    ),
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...; for the memory alone it need not be here.")
    ] = "auto",
    processes: Annotated[int, typer.Option(help="Processes that share the training.")] = 1,
    time: Annotated[
        bool, typer.Option("--time", help="Calibrate for about ten seconds, and estimate how long training takes.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of a latent denoiser: a tokenizer, or the name of a published one, instead of its own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters, GFLOPs and memory of a model or recipe, and the time of its training. Allocates no weights.

    GFLOPs are counted by the convention of the published tables.
    """
    from spheregen.errors import ConfigError
    from spheregen.evaluation.cost import TokenizerCost, cost_table
    from spheregen.model_folder import read_architecture
    from spheregen.model_source import find_model
    from spheregen.training.fitting import readable
    from spheregen.training.memory import estimate_sampling_memory
    from spheregen.training.recipe import build_recipe, load_recipe

    if processes < 1:
        raise ConfigError(f"--processes is at least 1, not {processes}")
    recipe: Recipe | None
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
    place, is_here = _place(device, must_be_here=time)
    cost = _cost(config, tokenizer, recipe, folder)
    front = _front(recipe, folder)
    latent = config if front is None else front
    answer: dict[str, Any] = {
        "name": target,
        **cost_table(cost),
        "image_size": config.image_size,
        "num_classes": config.num_classes,
        "latent": {"tokens": latent.tokens, "channels": latent.channels, "numbers": latent.tokens * latent.channels},
        "weights_bytes": 4 * sum(part.params for part in cost.parts.values()),
        "sampling_memory": None,
        "memory": None,
        "time": None,
    }
    if "generation_gflops" in answer:
        answer["sampling_memory"] = estimate_sampling_memory(
            config, SAMPLING_BATCH, device_type=place.type, front=front
        )
    if recipe is not None:
        images = _count_images(recipe) if data or time else None
        answer["memory"] = _memory(recipe, place, is_here, processes, images)
        if time:
            answer["time"] = _time(recipe, place, processes, images)
    if as_json:
        print_json(answer)
        return
    classes = f"{config.num_classes} classes" if config.num_classes else "unconditional"
    classes = "a tokenizer" if isinstance(cost, TokenizerCost) else classes
    patch = f", patch {config.patch}" if hasattr(config, "patch") else ""
    print(f"{target}: {config.image_size} px, {classes}, latent {latent.tokens} x {latent.channels}{patch}")
    rows: list[tuple[str, ...]] = [
        (name.replace("_", " "), f"{part.params / 1e6:.2f}", f"{part.gflops:.3g}", f"{part.counted_gflops:.3g}")
        for name, part in cost.parts.items()
    ]
    print(table(rows, ("part", "M parameters", "GFLOPs/image", "with attention")))
    print(f"float32 weights: {answer['weights_bytes'] / 2**20:.1f} MiB")
    if answer["sampling_memory"] is not None:
        totals = answer["generation_gflops"]
        steps = list(totals["unguided"])
        rows = [(name, *(f"{values[step]:.4g}" for step in steps)) for name, values in totals.items()]
        print(table(rows, ("GFLOPs to generate", *(f"{step} step{'s' if step != '1' else ''}" for step in steps))))
        if refinement := answer.get("refinement_gflops"):
            rows = [(name, *(f"{values[step]:.4g}" for step in steps)) for name, values in refinement.items()]
            print(table(rows, ("and to refine", *(f"{step} step{'s' if step != '1' else ''}" for step in steps))))
        print(f"memory to generate {SAMPLING_BATCH} at a time: {readable(answer['sampling_memory']['total'])}")
    _print_training(answer, recipe)


def _cost(
    config: Any, tokenizer: str | None, recipe: Recipe | None, folder: Path | None
) -> GeneratorCost | TokenizerCost:
    """What a generator costs; a latent denoiser with the tokenizer that is asked for, or its own, if it is known."""
    import torch

    from spheregen.errors import ConfigError
    from spheregen.evaluation.cost import (
        RefinedCost,
        TokenizerCost,
        autoencoder_cost,
        latent_generator_cost,
        refiner_cost,
        tokenizer_cost,
    )
    from spheregen.model_folder import SOURCE, TOKENIZER
    from spheregen.models.autoencoder import AutoencoderConfig
    from spheregen.models.flow_refiner import FlowRefinerConfig
    from spheregen.models.latent_denoiser import LatentDenoiserConfig
    from spheregen.tokenizers.architectures import blank_tokenizer
    from spheregen.tokenizers.representation import RepresentationAutoencoder, RepresentationConfig

    if isinstance(config, FlowRefinerConfig):
        front = _front(recipe, folder)
        inside = folder / SOURCE if folder is not None else None
        cost = _cost(front, tokenizer, None, inside)
        assert not isinstance(cost, TokenizerCost)
        channels = (front.tokens, front.channels)
        width = front.decoder_size.width if isinstance(front, AutoencoderConfig) else 0
        return RefinedCost(cost, refiner_cost(config.completed(channels, width)))
    if not isinstance(config, LatentDenoiserConfig):
        if isinstance(config, RepresentationConfig):
            with torch.device("meta"):
                return tokenizer_cost(RepresentationAutoencoder.from_config(config))
        if tokenizer is not None:
            raise ConfigError("--tokenizer belongs to latent denoisers; leave it out")
        return autoencoder_cost(config)
    name = tokenizer or (str(folder / TOKENIZER) if folder is not None else getattr(recipe, "tokenizer", None))
    return latent_generator_cost(config, None if name is None else blank_tokenizer(name))


def _front(recipe: Recipe | None, folder: Path | None) -> Any:
    """The architecture of the generator in front of a refiner; None where nothing is refined."""
    from spheregen.model_folder import SOURCE, read_architecture
    from spheregen.training.systems.sphere_flow import front_architecture

    if folder is not None:
        return read_architecture(folder / SOURCE) if (folder / SOURCE).is_dir() else None
    return None if recipe is None else front_architecture(recipe)


def _is_model(target: str) -> bool:
    """Whether a name means a model, not a recipe; where both have one name they are the same network."""
    from spheregen.model_source import bundled_models
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
    from spheregen.errors import ConfigError

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


def _memory(recipe: Recipe, place: torch.device, is_here: bool, processes: int, images: int | None) -> dict[str, Any]:
    from spheregen.devices import available_memory
    from spheregen.training.fitting import explain_fit, largest_micro_batch
    from spheregen.training.memory import estimate_memory

    precision = _precision(recipe, place, is_here)
    available = available_memory(place) if is_here else None
    micro_batch = recipe.train.micro_batch
    if micro_batch == "auto":
        micro_batch = None
        if available is not None:
            micro_batch = largest_micro_batch(
                recipe, precision=precision, world_size=processes, device_type=place.type, available=available
            )
    estimate = estimate_memory(
        recipe,
        precision=precision,
        world_size=processes,
        micro_batch=micro_batch,
        device_type=place.type,
        images=images,
    )
    warning = None
    if available is not None:
        warning = explain_fit(recipe, precision, place.type, processes, micro_batch, available)
    return {
        **estimate.as_dict(),
        "device": place.type,
        "precision": precision,
        "processes": processes,
        "available": available,
        "warning": warning,
    }


def _time(recipe: Recipe, place: torch.device, processes: int, images: int | None) -> dict[str, Any]:
    from spheregen.training.timing import estimate_time

    precision = _precision(recipe, place, True)
    return estimate_time(recipe, images, place, precision, world_size=processes).as_dict()


def _print_training(answer: dict[str, Any], recipe: Recipe | None) -> None:
    from spheregen.training.fitting import readable

    memory, time = answer["memory"], answer["time"]
    if memory is None or recipe is None:
        return
    processes = f", in each of {memory['processes']} processes" if memory["processes"] > 1 else ""
    print(
        f"memory to train with {memory['micro_batch']} images a pass on {memory['device']} in {memory['precision']}"
        f"{processes}: about {readable(memory['total'])}"
    )
    names = ("weights", "gradients", "moments", "average", "frozen", "activations", "temporary", "gathered", "data")
    rows = [(name, readable(memory[name])) for name in (*names, "reserve") if memory[name]]
    if memory["overlap"]:
        rows.append(("freed in time", f"-{readable(memory['overlap'])}"))
    print(table(rows, ("part", "memory")))
    if memory["available"] is not None:
        print(f"available: {readable(memory['available'])}")
    if memory["warning"]:
        print(f"warning: {memory['warning']}")
    if time is None:
        return
    print(
        f"time: {time['seconds_per_step']:.3g} s a step, {time['mfu']:.0%} of the measured "
        f"{time['peak_flops'] / 1e9:.4g} GFLOP/s (from {time['method']})"
    )
    if time["hours"] is not None:
        print(f"the run of {time['steps']} steps: {_duration(time['hours'])}")
    else:
        once = _duration(time["hours_per_1000_images_epoch"])
        print(f"an epoch over 1000 images: {once}; name your images with --data for the whole run of "
              f"{recipe.train.epochs:g} epochs")  # fmt: skip


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} seconds"
    if hours < 1:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:.3g} hours" if hours < 48 else f"{hours / 24:.3g} days"
