"""`spheregen compare`: evaluations side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from spheregen.cli import options as cli

if TYPE_CHECKING:
    from spheregen.evaluation.compare import ComparedFigure

WIDEST = 60  # characters of a setting's value


def compare(
    results: Annotated[
        list[Path],
        Argument(help="Two or more evaluation.json files, or folders with one.", metavar="RESULT"),
    ],
) -> None:
    """Compare evaluations: all figures side by side, the best one starred, and what the evaluations differ in.

    Differences in the protocol that make figures incomparable are warnings, and such figures have no star.

    Examples:
        spheregen compare report-a/ report-b/
    """
    from spheregen.evaluation.compare import compare as compare_results

    found = compare_results(results)
    first, *others = found.names
    header = ["figure", "better", first, *(title for name in others for title in (name, "against the first"))]
    rows = [
        [figure.title + ("" if figure.comparable else " (!)"), figure.better or "", *_cells(figure)]
        for figure in found.figures
    ]
    text = cli.table(rows, header)
    if settings := dict(found.settings):
        rows = [[name, *(textwrap.shorten(value, WIDEST) for value in values)] for name, values in settings.items()]
        text += f"\n\n{cli.table(rows, ('what differs', *found.names))}"
    cli.answer(found.as_dict(), text)
    if not cli.everywhere.as_json:
        if not all(figure.comparable for figure in found.figures):
            cli.warn("(!): not comparable")
        for warning in found.warnings:
            cli.warn(cli.cell(f"warning: {warning}"))


def _cells(figure: ComparedFigure) -> Iterator[str]:
    """Yield the first value, then each other one and its distance from the first."""
    first = figure.values[0]
    for place, (value, error, apart) in enumerate(zip(figure.values, figure.errors, figure.apart, strict=True)):
        star = " *" if figure.best == place else ""
        deviation = "" if error is None else f" +- {error:.2g}"
        yield "-" if value is None else f"{value:.5g}{deviation}{star}"
        if place:
            errors = "" if apart is None else f" ({abs(apart):.1f} errors)"
            yield "" if value is None or first is None else f"{value - first:+.4g}{errors}"
