"""`spheregen compare`: evaluations side by side."""

from __future__ import annotations

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
    rows: list[tuple[str, ...]] = [
        (
            figure.title + ("" if figure.comparable else " (!)"),
            figure.better or "",
            _value(figure, 0),
            *(text for place in range(1, len(found.names)) for text in (_value(figure, place), _change(figure, place))),
        )
        for figure in found.figures
    ]
    text = cli.table(rows, header)
    if settings := dict(found.settings):
        rows = [(name, *map(_short, values)) for name, values in settings.items()]
        text += f"\n\n{cli.table(rows, ('what differs', *found.names))}"
    cli.answer(found.as_dict(), text)
    if not cli.everywhere.as_json:
        if not all(figure.comparable for figure in found.figures):
            cli.warn("(!): not comparable")
        for warning in found.warnings:
            cli.warn(cli.cell(f"warning: {warning}"))


def _value(figure: ComparedFigure, place: int) -> str:
    value, error = figure.values[place], figure.errors[place]
    if value is None:
        return "-"
    star = " *" if figure.best == place else ""
    return f"{value:.5g}" + (f" +- {error:.2g}" if error is not None else "") + star


def _change(figure: ComparedFigure, place: int) -> str:
    """Return the distance of a result from the first."""
    value, first, apart = figure.values[place], figure.values[0], figure.apart[place]
    if value is None or first is None:
        return ""
    return f"{value - first:+.4g}" + (f" ({abs(apart):.1f} errors)" if apart is not None else "")


def _short(value: str) -> str:
    return value if len(value) <= WIDEST else f"{value[: WIDEST - 3]}..."
