"""`spheregen ablate`: train and score what differs in a setting or two, and tell in a table which is best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder

if TYPE_CHECKING:
    from spheregen.evaluation.ablation.plan import Plan


def ablate(
    recipe: cli.Recipe,
    over: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=V1,V2,...",
            help="Vary a setting; again for a grid. Keys of sampling share one trained model. The paper's names are "
            "understood: noise.alpha_max (model.max_angle), model.c (model.compression), model.mixer_depth (both "
            "mixers), loss.w1 to loss.w5.",
        ),
    ] = None,
    one_by_one: Annotated[
        bool, Option("--one-by-one", help="Vary one key at a time around the recipe's own values: no grid.")
    ] = False,
    seeds: Annotated[
        int, Option(help="Trainings of each combination, for mean and standard deviation: train.seed, +1, ...")
    ] = 1,
    settings: cli.RecipeSet = None,
    data: cli.Data = None,
    images: Annotated[
        str | None, Option(help="What samples are compared with, where --data is a latent cache.")
    ] = None,
    split: Annotated[
        str | None, Option(help="Part of the data that samples are compared with. Default: what is trained on.")
    ] = None,
    features: cli.Features = "own,classifier",
    count: Annotated[int, Option("--count", "-n", help="Samples of each combination to score.")] = 2000,
    out: Annotated[Path | None, Option(help="The folder of the study; ablation-RECIPE by default.")] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the trainings and their work and stop; writes nothing.")
    ] = False,
) -> None:
    """Train a recipe under several settings and score all alike: which value is best, and by how much.

    Writes ablation.json, ablation.csv and a page, index.html, with a table, plots and samples of the same seeds. All
    combinations are checked before the first training. The same command again continues an interrupted study; with
    more values it trains the new ones alone.

    Examples:
        spheregen ablate digits --over loss.w1=0,0.5,1 --seeds 3
        spheregen ablate mine.yaml --over noise.alpha_max=70,80,85 --over sampling.steps=1,4 --dry-run
    """
    from spheregen.distributed import is_first_process
    from spheregen.evaluation.ablation.plan import make_plan
    from spheregen.evaluation.ablation.run import StudyOptions, run_study
    from spheregen.evaluation.report.page import PAGE

    plan = make_plan(recipe, over or (), settings=settings or (), data=data, one_by_one=one_by_one, seeds=seeds)
    folder = output_folder(out or Path(f"ablation-{plan.base.name}"))
    options = StudyOptions(
        out=folder,
        images=images,
        split=split,
        features=tuple(cli.split_list(features) or ()),
        count=count,
        device=cli.everywhere.device,
    )
    if dry_run:
        _tell_plan(plan)
        return
    study = run_study(plan, options, reporter=cli.reporter)
    if study is None or not is_first_process():
        return
    cli.answer(study, lambda: _results(study))
    cli.say(f"page: {folder / PAGE}")


def _tell_plan(plan: Plan) -> None:
    """Print what would be trained."""
    from spheregen.evaluation.ablation.run import count_images

    images = count_images(plan)
    trainings: list[dict[str, Any]] = [
        {
            "run": training.name,
            "settings": training.label,
            "combinations": len(plan.of(training)),
            "parameters": training.parameters,
            "steps": training.recipe.total_steps(images[training.digest]),
            "pflops": training.pflops(images[training.digest]),
        }
        for training in plan.trainings
    ]
    combinations = [
        {"settings": dict(one.values), "runs": [t.name for t in one.trainings]} for one in plan.combinations
    ]
    total = sum(training["pflops"] for training in trainings)
    cli.answer(
        {"combinations": combinations, "trainings": trainings, "pflops": total},
        f"{cli.table(trainings)}\n"
        f"{len(combinations)} combinations, {len(trainings)} trainings, {total:.3g} PFLOPs in all",
    )


def _results(study: Mapping[str, Any]) -> str:
    """Return the table of a study; the best of each figure has a star."""
    from spheregen.evaluation.ablation.page import note_of

    def figure(row: Mapping[str, Any], key: str, number: int) -> str:
        if key not in row["mean"]:
            return "-"
        deviation = f" ± {row['deviation'][key]:.2g}" if key in row["deviation"] else ""
        return f"{row['mean'][key]:.4g}{deviation}{' *' if number in study['best'].get(key, ()) else ''}"

    return cli.table(
        {
            **row["texts"],
            **{column["title"]: figure(row, column["key"], number) for column in study["columns"]},
            "M params": f"{row['parameters'] / 1e6:.3g}",
            "": note_of(row),
        }
        for number, row in enumerate(study["rows"])
    )
