"""`spheregen plot`: the curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spheregen.cli.options import Json, print_json, say, split_list


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are laid over one another.", metavar="RUN")],
    out: Annotated[
        Path | None,
        typer.Option(help="The picture: .png, .svg or .pdf. Default: RUN/curves.png, curves.png for several runs."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="The metrics to draw, for example loss,grad_norm.")] = None,
    smooth: Annotated[int, typer.Option(help="Log entries to average over; 1 is none.")] = 1,
    as_json: Json = False,
) -> None:
    """Draw the curves in the logs of runs, finished or under way.

    With --json each metric's last, smallest and largest value goes to stdout, and a picture is drawn only with --out.
    """
    from spheregen.errors import ConfigError
    from spheregen.training.plots import CURVES, choose_metrics, draw_curves, read_series, summary

    folders = list(dict.fromkeys(runs))
    series = {str(folder): read_series(folder) for folder in folders}
    metrics = split_list(only)
    chosen = choose_metrics(series, metrics)
    picture = out or (folders[0] / CURVES if len(folders) == 1 else Path(CURVES))
    if picture.is_dir():
        raise ConfigError(f"the output path {picture} is a folder; choose a file such as {picture / CURVES}")
    if out or not as_json:
        draw_curves(series, picture, only=metrics, smooth=smooth)
    if as_json:
        numbers = {run: {name: summary(of[name]) for name in chosen if name in of} for run, of in series.items()}
        print_json({"runs": numbers, "picture": str(out) if out else None})
    else:
        last = max(points.steps[-1] for of in series.values() for points in of.values())
        say(f"{len(chosen)} metrics up to step {last}: {picture}")
