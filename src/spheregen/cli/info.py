"""`spheregen info`: parameters and cost of a model or recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spheregen.cli.options import Json, print_json, table


def info(
    target: Annotated[
        str, typer.Argument(help="A model folder, a shipped recipe or a YAML file.", metavar="MODEL|RECIPE")
    ],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe, a.b=c.")] = None,
    as_json: Json = False,
) -> None:
    """Parameters and GFLOPs of a model or recipe, by the convention of the published tables. Allocates no weights."""
    from spheregen.errors import ConfigError
    from spheregen.evaluation.cost import autoencoder_cost
    from spheregen.model_folder import read_architecture
    from spheregen.training.recipe import load_recipe

    is_model = Path(target).is_dir()
    if is_model and settings:
        raise ConfigError(f"{target} is a trained model; --set changes recipes only")
    config = read_architecture(target) if is_model else load_recipe(target, settings or ()).model
    cost = autoencoder_cost(config)
    answer: dict[str, Any] = {
        "name": target,
        **cost.as_dict(),
        "image_size": config.image_size,
        "num_classes": config.num_classes,
        "latent": {"tokens": config.tokens, "channels": config.channels, "numbers": config.tokens * config.channels},
        "weights_bytes": 4 * (cost.encoder.params + cost.decoder.params),
    }
    if as_json:
        print_json(answer)
        return
    classes = f"{config.num_classes} classes" if config.num_classes else "unconditional"
    print(
        f"{target}: {config.image_size} px, {classes}, latent {config.tokens} x {config.channels}, patch {config.patch}"
    )
    rows = [(name, f"{part.params / 1e6:.2f}", f"{part.gflops:.3g}") for name, part in vars(cost).items()]
    print(table(rows, ("part", "M parameters", "GFLOPs/image")))
    print(f"float32 weights: {answer['weights_bytes'] / 2**20:.1f} MiB")
    steps = list(answer["generation_gflops"]["unguided"])
    rows = [(name, *(f"{values[step]:.4g}" for step in steps)) for name, values in answer["generation_gflops"].items()]
    print(table(rows, ("GFLOPs to generate", *(f"{step} step{'s' if step != '1' else ''}" for step in steps))))
