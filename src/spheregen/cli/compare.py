"""`spheregen compare`: evaluations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spheregen.cli.options import Json, print_json, say, table

if TYPE_CHECKING:
    from spheregen.evaluation.compare import ComparedFigure, Comparison

_WIDEST = 60  # characters of a setting's value


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(help="Two or more evaluation.json files, or folders with one.", metavar="RESULT"),
    ],
    as_json: Json = False,
) -> None:
    """Compare evaluations: all figures side by side, the best one starred, and what the evaluations differ in.

    Differences in the protocol that make figures incomparable are warnings, and such figures have no star.
    """
    from spheregen.evaluation.compare import compare as compare_results

    found = compare_results(results)
    if as_json:
        print_json(found.as_dict())
        return
    print(_figures(found))
    if found.settings:
        rows = [(_cell(name), *(_cell(_cut(value)) for value in values)) for name, values in found.settings]
        print(f"\n{table(rows, ('what differs', *map(_cell, found.names)))}")
    if any(not figure.comparable for figure in found.figures):
        say("(!): not comparable")
    for warning in found.warnings:
        say(_cell(f"warning: {warning}"))


def _figures(found: Comparison) -> str:
    """The table of figures; each result but the first with its distance from the first."""
    header = ["figure", "better"]
    for place, name in enumerate(found.names):
        header += [_cell(name)] if place == 0 else [_cell(name), "against the first"]
    rows = [
        (
            _cell(figure.title) + ("" if figure.comparable else " (!)"),
            figure.better or "",
            *(cell for place in range(len(found.names)) for cell in _cells(figure, place)),
        )
        for figure in found.figures
    ]
    return table(rows, tuple(header))


def _cells(figure: ComparedFigure, place: int) -> tuple[str, ...]:
    value, error, first = figure.values[place], figure.errors[place], figure.values[0]
    text = "-" if value is None else f"{value:.5g}" + (f" +- {error:.2g}" if error is not None else "")
    text += " *" if figure.best == place else ""
    if place == 0:
        return (text,)
    difference = "" if value is None or first is None else f"{value - first:+.4g}"
    apart = figure.apart[place]
    return text, difference + (f" ({abs(apart):.1f} errors)" if apart is not None else "")


def _cut(value: str) -> str:
    return value if len(value) <= _WIDEST else value[: _WIDEST - 3] + "..."


def _cell(text: str) -> str:
    """A text of a file on one line of a terminal, without control sequences."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
