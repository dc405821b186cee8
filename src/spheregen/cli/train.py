"""`spheregen train`: train a recipe, or continue it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder

if TYPE_CHECKING:
    from spheregen.family.recipe import Recipe
    from spheregen.training.trainer import TrainingResult

LONG_RUN = 1200
"""Seconds of a run from which on its defaults of sampling are measured."""


def train(
    recipe: cli.Recipe,
    data: cli.Data = None,
    init: Annotated[
        str | None, Option(help="Fine-tune this model: a model folder, a bundled model or user/name of the Hub.")
    ] = None,
    out: Annotated[Path | None, Option(help="The run folder; runs/RECIPE by default.")] = None,
    settings: cli.RecipeSet = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check data and models, print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Train a generator, or fine-tune one. The same command again continues an interrupted run where it was saved.

    Examples:
        spheregen train digits
        spheregen train cifar10-laptop --data photos/ --set train.steps=5000 --out runs/mine
        spheregen train mine.yaml --dry-run
    """
    from spheregen.family.registry import member_of_kind
    from spheregen.training.recipe import check_recipe, load_recipe

    resolved = load_recipe(recipe, settings or (), data=data, init=init)
    if dry_run:
        import yaml

        if note := check_recipe(resolved):
            cli.warn(f"note: {note}")
        values = resolved.model_dump(mode="json")
        cli.answer(values, lambda: yaml.safe_dump(values, sort_keys=False).rstrip())
        return
    from spheregen.distributed import is_first_process
    from spheregen.training.trainer import train as run_training

    folder = output_folder(out or Path("runs") / resolved.name)
    result = run_training(resolved, folder, device=cli.everywhere.device, reporter=cli.reporter())
    if is_first_process():
        _tune(resolved, result)
        use = f"sample it with: spheregen sample {folder}"
        if not member_of_kind(resolved.kind).generates:
            use = f"encode images with it: spheregen encode {folder} IMAGES"
        cli.finish(
            {**dataclasses.asdict(result), "folder": str(result.folder)},
            f"the model is in {folder}; look at {folder / 'previews'}, {use}",
        )


def _tune(recipe: Recipe, result: TrainingResult) -> None:
    """Measure defaults of sampling after a long run, in about a twentieth of its time."""
    from spheregen.data.latent_cache import is_latent_cache
    from spheregen.errors import SphereGenError
    from spheregen.evaluation.tuning import tune_folder
    from spheregen.family.registry import member_of_kind

    source = recipe.data.source
    if not recipe.train.tune or result.steps_done_now == 0 or result.seconds < LONG_RUN or source is None:
        return
    if not member_of_kind(recipe.kind).generates or is_latent_cache(source):
        return
    try:
        tune_folder(
            result.folder,
            source,
            recipe.data.split,
            seconds=result.seconds / 20,
            device=cli.everywhere.device,
            reporter=cli.reporter(),
        )
    except SphereGenError as error:
        cli.warn(f"the model is whole, but its defaults of sampling were not measured: {error}")
