"""`spheregen bench`: how fast a recipe samples and trains here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from spheregen.cli import options as cli

if TYPE_CHECKING:
    from spheregen.training.bench import BenchResult


def bench(
    recipe: cli.Recipe,
    settings: cli.RecipeSet = None,
    precision: Annotated[
        str | None, Option(help="float32, bf16 or both with a comma; by default what is sensible here.")
    ] = None,
    batch_size: Annotated[int | None, Option(help="Images at a time; the recipe's by default.")] = None,
    steps: Annotated[str, Option(help="Numbers of sampling steps, with commas.")] = "1,4",
    repeats: Annotated[int, Option(help="Runs of everything; medians are reported.")] = 10,
    only: Annotated[str | None, Option(help="sample or train; both by default.")] = None,
    perceptual: Annotated[
        str | None,
        Option(help="random: the published perceptual networks with random weights, which need no files."),
    ] = None,
    profile: Annotated[
        bool, Option("--profile", help="Show where the time goes; on CUDA also whether a step waits for it.")
    ] = False,
    against: Annotated[
        Path | None, Option(help="Compare with a result that --json printed: images per second, now by then.")
    ] = None,
) -> None:
    """Measure how fast a recipe samples and trains here, against matrix products in turn with them. Needs no data.

    Examples:
        spheregen bench digits
        spheregen bench cifar10 --batch-size 256 --precision bf16 --only train --profile
        spheregen bench digits --json > before.json
        spheregen bench digits --against before.json
    """
    from spheregen.devices import choose_device
    from spheregen.training.bench import WHAT, compare, read_result
    from spheregen.training.bench import bench as run_bench
    from spheregen.training.recipe import load_recipe

    saved = None if against is None else read_result(against)
    result = run_bench(
        load_recipe(recipe, settings or ()),
        device=choose_device(cli.everywhere.device),
        precisions=cli.split_list(precision),
        batch_size=batch_size,
        steps=cli.split_numbers(steps, "--steps", int),
        repeats=repeats,
        what=WHAT if only is None else (only,),
        perceptual=perceptual,
        profile=profile,
        progress=cli.say,
    )
    compared = None if saved is None else compare(result, saved)
    cli.answer(
        {**result.as_dict(), **({} if compared is None else {"against": compared})}, lambda: _text(result, compared)
    )


def _text(result: BenchResult, compared: dict[str, float] | None) -> str:
    rows = [
        {
            "work": "train" if row.what == "train" else f"sample {row.steps}",
            "precision": row.precision,
            "batch": row.batch_size,
            "ms": row.seconds * 1e3,
            "p5-p95": "-".join(f"{row.percentiles[each] * 1e3:.4g}" for each in ("p5", "p95")),
            "images/s": row.images_per_second,
            "images/CPU s": row.images_per_cpu_second,
            "GFLOPs/image": row.flops_per_image / 1e9,
            "GFLOP/s": row.flops / 1e9,
            "of peak": f"{row.of_peak:.1%}",
            "MiB": row.peak_bytes and round(row.peak_bytes / 2**20),
        }
        for row in result.rows
    ]
    peaks = {name: {"GFLOP/s": peak.flops / 1e9, "best side": peak.size} for name, peak in result.peaks.items()}
    return "\n".join(
        [
            cli.details({"recipe": result.recipe, **result.machine, "matrix products": peaks}),
            "",
            cli.table(rows),
            *([] if compared is None else ["", cli.table(compared.items(), ("work", "now by then"))]),
            *(f"\nwhere the time of {name} goes\n{profile}" for name, profile in result.profiles.items()),
            *(f"note: {note}" for note in result.notes),
        ]
    )
