"""`spheregen ablate`: train and score what differs in a setting or two, and tell in a table which is best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spheregen.cli.options import Device, Json, Quiet, output_folder, print_json, say, split_list, table

if TYPE_CHECKING:
    from spheregen.evaluation.ablation.plan import Plan


def ablate(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `spheregen recipes`) or a YAML file.")],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,...",
            help="Vary a setting; again for a grid. Keys of sampling share one trained model. The paper's names are "
            "understood: noise.alpha_max (model.max_angle), model.c (model.compression), model.mixer_depth (both "
            "mixers), loss.w1 to loss.w5.",
        ),
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Vary one key at a time around the recipe's own values: no grid.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="Trainings of each combination, for mean and standard deviation: train.seed, +1, ...")
    ] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of all combinations, a.b=c; repeatable.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images: digits, a folder, zip, parquet or tar files, a Hub data set.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="What samples are compared with, where --data is a latent cache.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Part of the data that samples are compared with. Default: what is trained on.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="Feature networks, with commas, as for `evaluate`; the first one leads.")
    ] = "own",
    count: Annotated[int, typer.Option("--count", "-n", help="Samples of each combination to score.")] = 2000,
    out: Annotated[Path | None, typer.Option(help="The folder of the study; ablation-RECIPE by default.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the trainings and their work and stop; writes nothing.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a recipe under several settings and score all alike: which value is best, and by how much.

    Writes ablation.json, ablation.csv and a page, index.html, with a table, plots and samples of the same seeds. All
    combinations are checked before the first training. The same command again continues an interrupted study; with
    more values it trains the new ones alone.
    """
    from spheregen.distributed import is_first_process
    from spheregen.evaluation.ablation.plan import make_plan
    from spheregen.evaluation.ablation.run import PAGE, StudyOptions, run_study
    from spheregen.progress import default_reporter

    plan = make_plan(recipe, over or (), settings=settings or (), data=data, one_by_one=one_by_one, seeds=seeds)
    folder = output_folder(out or Path(f"ablation-{plan.base.name}"))
    options = StudyOptions(
        out=folder,
        images=images,
        split=split,
        features=tuple(split_list(features) or ()),
        count=count,
        device=device,
    )
    if dry_run:
        _tell_plan(plan, as_json=as_json)
        return
    study = run_study(plan, options, reporter=lambda: default_reporter(quiet=quiet))
    if study is None or not is_first_process():
        return
    if as_json:
        print_json(study)
        return
    print(_results(study))
    say(f"page: {folder / PAGE}")


def _tell_plan(plan: Plan, *, as_json: bool) -> None:
    """What would be trained."""
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
    if as_json:
        print_json({"combinations": combinations, "trainings": trainings, "pflops": total})
        return
    rows = [
        (
            each["run"],
            f"{each['parameters'] / 1e6:.3g}",
            str(each["steps"]),
            f"{each['pflops']:.3g}",
            str(each["combinations"]),
        )
        for each in trainings
    ]
    print(table(rows, ("run", "M parameters", "steps", "training, PFLOPs", "combinations")))
    print(f"{len(combinations)} combinations, {len(trainings)} trainings, {total:.3g} PFLOPs in all")


def _results(study: Mapping[str, Any]) -> str:
    """The table of a study; the best of each figure has a star."""
    from spheregen.evaluation.ablation.record import note_of

    keys = [axis["key"] for axis in study["over"]]
    columns = study["columns"]
    rows = []
    for number, row in enumerate(study["rows"]):
        figures = [
            _figure(row, column["key"], best=number in study["best"].get(column["key"], ())) for column in columns
        ]
        rows.append((*(row["texts"][key] for key in keys), *figures, f"{row['parameters'] / 1e6:.3g}", note_of(row)))
    header = (*keys, *(column["title"] for column in columns), "M params", "")
    return table(rows, header)


def _figure(row: Mapping[str, Any], key: str, *, best: bool) -> str:
    if key not in row["mean"]:
        return "-"
    deviation = f" ± {row['deviation'][key]:.2g}" if key in row["deviation"] else ""
    return f"{row['mean'][key]:.4g}{deviation}{' *' if best else ''}"
