"""`spheregen plot`: the curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_file


def plot(
    runs: Annotated[list[Path], Argument(help="Run folders; several are laid over one another.", metavar="RUN")],
    out: Annotated[
        Path | None,
        Option(help="The image: .png, .svg or .pdf. Default: RUN/curves.png, curves.png for several runs."),
    ] = None,
    only: Annotated[str | None, Option(help="The metrics to draw, for example loss,grad_norm.")] = None,
    smooth: Annotated[int, Option(help="Log entries to average over; 1 is none.")] = 1,
) -> None:
    """Draw the curves in the logs of runs, finished or under way.

    With --json each metric's last, smallest and largest value goes to stdout, and an image is drawn only with --out.

    Examples:
        spheregen plot runs/digits
        spheregen plot runs/a runs/b --only loss --smooth 20 --out both.svg
    """
    from spheregen.training.plots import CURVES, choose_metrics, draw_curves, read_series, summary

    folders = list(dict.fromkeys(runs))
    series = {str(folder): read_series(folder) for folder in folders}
    metrics = cli.split_list(only)
    chosen = choose_metrics(series, metrics)
    image = out or (folders[0] / CURVES if len(folders) == 1 else Path(CURVES))
    if out or not cli.everywhere.as_json:
        draw_curves(series, output_file(image), only=metrics, smooth=smooth)
    numbers = {run: {name: summary(of[name]) for name in chosen if name in of} for run, of in series.items()}
    last = max(points.steps[-1] for of in series.values() for points in of.values())
    cli.finish(
        {"runs": numbers, "image": str(out) if out else None},
        f"{len(chosen)} metrics up to step {last}: {image}",
    )
