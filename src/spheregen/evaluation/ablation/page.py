"""The page of a study: its table, quality against each key, and the same seeds under every combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from spheregen.evaluation.report.page import render
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Sheet, is_number, table_of
from spheregen.evaluation.report.sections import settings_table

FRECHET = "frechet_"
"""Begins the name of a Frechet distance; the network follows."""
FEW = 6
"""Lines in one plot; of more, and of values that are no numbers, points are drawn."""

Row = Mapping[str, Any]


def study_page(study: Mapping[str, Any], samples: Sequence[Path | None]) -> str:
    """Return the page as HTML.

    Args:
        study: what `run_study` returns.
        samples: image files of each row, if it has some.
    """
    keys = [axis["key"] for axis in study["over"]]
    runs = [run["status"] for row in study["rows"] for run in row["runs"]]
    subtitle = f"{', '.join(keys)}; {len(study['rows'])} combinations, {runs.count('done')} of {len(runs)} results"
    text = "The same seeds and classes under every combination, of the first training of each; nothing is chosen."
    sections = [
        _results(study),
        Section(
            key="settings",
            title="Quality against each setting",
            plots=tuple(plot for key in keys for plot in _plots(study, key)),
        ),
        Section(key="samples", title="Samples", text=(text,), sheets=tuple(_sheets(study, samples))),
        _protocol(study),
    ]
    return render(f"Ablation of {study['recipe']['name']}", subtitle, sections, study, file="ablation.json")


def note_of(row: Row) -> str:
    """Return which of a row's runs did not end well, in a few words."""
    failed = [run["error"] for run in row["runs"] if run["status"] == "failed"]
    waiting = [run for run in row["runs"] if run["status"] == "waiting"]
    parts = [f"failed {len(failed)} of {len(row['runs'])}: {failed[0]}"] if failed else []
    parts += [f"waiting {len(waiting)} of {len(row['runs'])}"] if waiting else []
    return "; ".join(parts)


def _results(study: Mapping[str, Any]) -> Section:
    rows = study["rows"]
    columns: list[tuple[str, Sequence[Cell]]] = [
        (axis["key"], [row["texts"][axis["key"]] for row in rows]) for axis in study["over"]
    ]
    for column in study["columns"]:
        key, best = column["key"], study["best"].get(column["key"], ())
        columns.append((column["title"], [row["mean"].get(key) for row in rows]))
        columns.append(("±", [row["deviation"].get(key) for row in rows]))
        if best:
            columns.append(("", ["best" if number in best else "" for number in range(len(rows))]))
    columns.append(("M parameters", [row["parameters"] / 1e6 for row in rows]))
    if any(remarks := [note_of(row) for row in rows]):
        columns.append(("remark", remarks))
    return Section(
        key="results",
        title="Results",
        text=(
            "A lower Fréchet distance (FD) of samples and a higher PSNR of reconstructions are better. Final losses "
            "compare only where nothing of the loss was varied. Times are of the machine that this ran on. Figures are "
            f"means over the trainings of a combination ({study['seeds']}), ± is their standard deviation; differences "
            "below that may be chance.",
        ),
        warnings=tuple(dict.fromkeys(note for row in rows for run in row["runs"] for note in run.get("notes", ()))),
        tables=table_of("", columns),
    )


def _plots(study: Mapping[str, Any], key: str) -> list[Plot]:
    """The leading Frechet distance against one key, a line for rows that agree in the others; none of one value."""
    column, one_by_one = study["columns"][0], study["one_by_one"]
    rows = [row for row in study["rows"] if column["key"] in row["mean"]]
    if one_by_one:
        rows = [row for row in rows if row["varies"] in (None, key) and row["settings"][key] is not None]
    values = {row["texts"][key]: row["settings"][key] for row in rows}
    if len(values) < 2:
        return []
    numeric = all(map(is_number, values.values()))
    places = {text: float(value if numeric else place) for place, (text, value) in enumerate(values.items())}
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: places[row["texts"][key]]):
        others = "" if one_by_one else ", ".join(f"{name}={text}" for name, text in row["texts"].items() if name != key)
        groups.setdefault(others or key, []).append(row)
    if many := len(groups) > FEW:
        groups = {"all combinations": rows}
    series = tuple(
        Series(
            name=name,
            x=tuple(places[row["texts"][key]] for row in group),
            y=tuple(row["mean"][column["key"]] for row in group),
            error=tuple(row["deviation"].get(column["key"], 0.0) for row in group) if study["seeds"] > 1 else None,
            kind="line" if numeric and not many else "points",
            labels=None if numeric else tuple(row["texts"][key] for row in group),
        )
        for name, group in groups.items()
    )
    return [Plot(title=f"{column['title']} against {key}", x_label=key, y_label=column["title"], series=series)]


def _sheets(study: Mapping[str, Any], samples: Sequence[Path | None]) -> list[Sheet]:
    sheets, quality = [], study["columns"][0]
    for row, path in zip(study["rows"], samples, strict=True):
        if path is not None and quality["key"] in row["mean"]:
            with Image.open(path) as image:
                image.load()
            caption = f"{quality['title']} {row['mean'][quality['key']]:.3g}"
            sheets.append(Sheet(image=image, title=row["label"], caption=caption))
    return sheets


def _protocol(study: Mapping[str, Any]) -> Section:
    protocol = {key: value for key, value in study["protocol"].items() if key != "references"}
    made = {
        str(run["made_with"]): run["made_with"] for row in study["rows"] for run in row["runs"] if "made_with" in run
    }
    warning = "The combinations were compared with different real images, so their distances are of different things."
    return Section(
        key="protocol",
        title="How it was measured",
        text=("The Fréchet distance rests on few samples, so it compares rows of this table and nothing else.",),
        warnings=(warning,) if len(study["protocol"]["references"]) > 1 else (),
        tables=(
            *settings_table("", protocol),
            *(table for each in made.values() for table in settings_table("", each)),
        ),
    )
