"""`spheregen bench`: how fast a recipe samples and trains here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import Device, Json, print_json, say, split_list, table

if TYPE_CHECKING:
    from spheregen.training.bench import BenchResult


def bench(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `spheregen recipes`) or a YAML file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting, a.b=c; repeatable.")] = None,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="float32, bf16 or both with a comma; by default what is sensible here.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time; the recipe's by default.")] = None,
    steps: Annotated[str, typer.Option(help="Numbers of sampling steps, with commas.")] = "1,4",
    repeats: Annotated[int, typer.Option(help="Runs of everything; medians are reported.")] = 10,
    only: Annotated[str | None, typer.Option(help="sample or train; both by default.")] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(help="random: the published perceptual networks with random weights, which need no files."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time goes; on CUDA also whether a step waits for it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Throughput of sampling and training, against matrix products measured in turn with them. Needs no data."""
    from spheregen.devices import choose_device
    from spheregen.training.bench import WHAT
    from spheregen.training.bench import bench as run_bench
    from spheregen.training.recipe import load_recipe

    result = run_bench(
        load_recipe(recipe, settings or ()),
        device=choose_device(device),
        precisions=split_list(precision),
        batch_size=batch_size,
        steps=_numbers(steps),
        repeats=repeats,
        what=WHAT if only is None else (only,),
        perceptual=perceptual,
        profile=profile,
        progress=say,
    )
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)


def _numbers(text: str) -> list[int]:
    from spheregen.errors import ConfigError

    try:
        return [int(item) for item in split_list(text) or ()]
    except ValueError as error:
        raise ConfigError(f"--steps takes whole numbers such as 1,4, not {text!r}") from error


def _print(result: BenchResult) -> None:
    machine = result.machine
    print(
        f"{result.recipe} on {machine.device} ({machine.kind}, {machine.threads} threads), torch {machine.torch}, "
        f"Python {machine.python}, {machine.system}"
    )
    peaks = [
        (precision, f"{peak.flops / 1e9:.4g}", str(peak.size), ", ".join(map(str, peak.by_size)))
        for precision, peak in result.peaks.items()
    ]
    print(table(peaks, ("matrix products", "GFLOP/s", "best side", "measured sides")))
    rows = [
        (
            "train" if row.what == "train" else f"sample {row.steps}",
            row.precision,
            str(row.batch_size),
            f"{row.seconds * 1e3:.4g}",
            f"{row.percentiles['p5'] * 1e3:.4g}-{row.percentiles['p95'] * 1e3:.4g}",
            f"{row.images_per_second:.4g}",
            f"{row.flops_per_image / 1e9:.4g}",
            f"{row.flops / 1e9:.4g}",
            f"{row.of_peak:.1%}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
        )
        for row in result.rows
    ]
    header = ("work", "precision", "batch", "ms", "p5-p95", "images/s", "GFLOPs/image", "GFLOP/s", "of peak", "MiB")
    print(table(rows, header))
    for name, profile in result.profiles.items():
        print(f"\nwhere the time of {name} goes")
        lines = [
            (row.group, row.name[:60], f"{row.seconds * 1e3:.4g}", f"{row.share:.1%}", str(row.calls))
            for row in profile
        ]
        print(table(lines, ("group", "operator", "ms", "share", "calls")))
    for note in result.notes:
        print(f"note: {note}")
