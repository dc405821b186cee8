"""The page of a study: its table, quality against each key, and the same seeds under every combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spheregen.evaluation.ablation.record import FRECHET, note_of
from spheregen.evaluation.ablation.sheet import samples_sheet
from spheregen.evaluation.report.page import render
from spheregen.evaluation.report.parts import Cell, Picture, Plot, Section, Series, Table

FEW = 6
"""Lines in one plot; with more the points of all and the best at each value are drawn."""
_WIDE_RANGE = 50.0  # from this ratio of the largest to the smallest value on, an axis is logarithmic

Row = Mapping[str, Any]


def study_page(study: Mapping[str, Any], pictures: Sequence[Path | None]) -> str:
    """The page as HTML.

    Args:
        study: of `record.study_json`.
        pictures: of `sheet.save_samples`, for each row that has some.
    """
    name = study["recipe"]["name"]
    keys = ", ".join(axis["key"] for axis in study["over"])
    sections = [_results(study), _plots(study), _samples(study, pictures), _protocol(study)]
    done = sum(run["status"] == "done" for row in study["rows"] for run in row["runs"])
    total = sum(len(row["runs"]) for row in study["rows"])
    subtitle = f"{keys}; {len(study['rows'])} combinations, {done} of {total} results"
    return render(
        f"Ablation of {name}", subtitle, [each for each in sections if each is not None], study, file="ablation.json"
    )


def _results(study: Mapping[str, Any]) -> Section:
    keys = [axis["key"] for axis in study["over"]]
    shown, best, seeds = study["columns"], study["best"], study["seeds"]
    sizes = len({row["parameters"] for row in study["rows"]}) > 1
    remarks = [note_of(row) for row in study["rows"]]
    header = [*keys, "best"]
    for column in shown:
        header += [column["title"], "±"] if seeds > 1 else [column["title"]]
    header += [*(["M parameters"] if sizes else []), *(["remark"] if any(remarks) else [])]
    rows = []
    for number, (row, remark) in enumerate(zip(study["rows"], remarks, strict=True)):
        wins = [column["title"].partition(",")[0] for column in shown if number in best.get(column["key"], ())]
        cells: list[Cell] = [*(_cell(row, key) for key in keys), ", ".join(wins)]
        for column in shown:
            cells.append(row["mean"].get(column["key"]))
            cells += [row["deviation"].get(column["key"])] if seeds > 1 else []
        cells += [*([row["parameters"] / 1e6] if sizes else []), *([remark] if any(remarks) else [])]
        rows.append(tuple(cells))
    notes = dict.fromkeys(note for row in study["rows"] for run in row["runs"] for note in run.get("notes", ()))
    text = [
        "A lower Fréchet distance (FD) of samples and a higher PSNR of reconstructions are better. Final losses "
        "compare only where nothing of the loss was varied. Times are of the machine that this ran on."
    ]
    if seeds > 1:
        text.append(f"Means over {seeds} trainings of each combination; ± is their standard deviation.")
    else:
        text.append(
            "Each combination was trained once, so small differences may be chance: --seeds 3 tells how much trainings "
            "differ that are alike but for their seed."
        )
    return Section(
        key="results",
        title="Results",
        text=tuple(text),
        warnings=tuple(notes),
        tables=(Table(header=tuple(header), rows=tuple(rows)),),
    )


def _plots(study: Mapping[str, Any]) -> Section | None:
    """Quality against each key: the leading Frechet distance, and PSNR where training is varied."""
    distance = next(column for column in study["columns"] if column["key"].startswith(FRECHET))
    psnr = next(column for column in study["columns"] if column["key"] == "psnr")
    plots: list[Plot | None] = []
    for axis in study["over"]:
        plots.append(_plot(study, axis["key"], distance))
        if axis["needs_training"]:
            plots.append(_plot(study, axis["key"], psnr))
    drawn = tuple(plot for plot in plots if plot is not None)
    return Section(key="settings", title="Quality against each setting", plots=drawn) if drawn else None


def _plot(study: Mapping[str, Any], key: str, column: Mapping[str, Any]) -> Plot | None:
    """One figure against one key, or None where fewer than two values are known."""
    groups = _groups(study, key, column["key"])
    values = {row["texts"][key]: row["settings"][key] for rows in groups.values() for row in rows}
    if len(values) < 2:
        return None
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    places = {text: float(value) if numeric else float(place) for place, (text, value) in enumerate(values.items())}
    series = tuple(_series(name, rows, key, column["key"], places, numeric) for name, rows in groups.items())
    if len(series) > FEW:
        series = _summed_up(series, column["better"])
    low, high = min(places.values()), max(places.values())
    return Plot(
        title=f"{column['title']} against {key}",
        x_label=key,
        y_label=column["title"],
        series=series,
        log_x=numeric and low > 0 and high / low >= _WIDE_RANGE,
    )


def _groups(study: Mapping[str, Any], key: str, figure: str) -> dict[str, list[Row]]:
    """Rows with a figure, by what they have in common beside `key`; one key at a time: those that vary it."""
    groups: dict[str, list[Row]] = {}
    # what sampling does not change is drawn once
    free = [] if figure.startswith(FRECHET) else [axis["key"] for axis in study["over"] if not axis["needs_training"]]
    for row in study["rows"]:
        if figure not in row["mean"]:
            continue
        if not study["one_by_one"]:
            others = {name: text for name, text in row["texts"].items() if name != key and name not in free}
            group = groups.setdefault(", ".join(f"{name}={text}" for name, text in others.items()) or key, [])
            if all(row["texts"][key] != other["texts"][key] for other in group):
                group.append(row)
        elif row["varies"] in (None, key) and row["settings"][key] is not None:
            groups.setdefault(key, []).append(row)
    return groups


def _series(
    name: str, rows: Sequence[Row], key: str, figure: str, places: Mapping[str, float], numeric: bool
) -> Series:
    ordered = sorted(rows, key=lambda row: places[row["texts"][key]])
    errors = [row["deviation"].get(figure) for row in ordered]
    return Series(
        name=name,
        x=tuple(places[row["texts"][key]] for row in ordered),
        y=tuple(row["mean"][figure] for row in ordered),
        error=None if None in errors else tuple(errors),
        kind="line" if numeric else "bars",
        labels=None if numeric else tuple(row["texts"][key] for row in ordered),
    )


def _summed_up(series: Sequence[Series], better: str) -> tuple[Series, ...]:
    """The points of all, and the best at each value."""
    points = sorted((x, y) for each in series for x, y in zip(each.x, each.y, strict=True))
    pick = min if better == "lower" else max
    best = {x: pick(y for place, y in points if place == x) for x, _ in points}
    labels = None
    if series[0].labels is not None:
        names = {x: label for each in series for x, label in zip(each.x, each.labels or (), strict=True)}
        labels = tuple(names[x] for x in best)
    best_line = Series(
        name="best of the others", x=tuple(best), y=tuple(best.values()), kind=series[0].kind, labels=labels
    )
    if labels is not None:  # bars hide points
        return (best_line,)
    x, y = zip(*points, strict=True)
    return (best_line, Series(name="all combinations", x=x, y=y, kind="points"))


def _samples(study: Mapping[str, Any], pictures: Sequence[Path | None]) -> Section | None:
    if not any(pictures):
        return None
    return Section(
        key="samples",
        title="Samples",
        text=(
            "The same seeds and classes under every combination, of the first training of each. They are not chosen: "
            f"seeds {study['protocol']['seed']} and on.",
        ),
        pictures=(Picture(image=samples_sheet(study, pictures), title="Samples by combination"),),
    )


def _protocol(study: Mapping[str, Any]) -> Section:
    protocol = study["protocol"]
    reference, reconstruction = protocol["reference"], protocol["reconstruction"]
    networks = protocol["features"]
    made = {tuple(run["made_with"].items()) for row in study["rows"] for run in row["runs"] if "made_with" in run}
    rows: list[tuple[Cell, Cell]] = [
        ("samples of each combination", protocol["count"]),
        ("seeds of samples", f"{protocol['seed']} and on, the classes in turn"),
        ("trainings of each combination", study["seeds"]),
        ("compared with", _images(reference) if isinstance(reference, Mapping) else "different data, see JSON"),
        ("reconstructed", _images(reconstruction)),
        *((f"network {name}", f"{info['title']}, {info['weights'][:8]}") for name, info in networks.items()),
        *(("made with", ", ".join(f"{key} {value}" for key, value in each)) for each in sorted(made)),
    ]
    warnings = () if isinstance(reference, Mapping) else (_DIFFERENT,)
    return Section(
        key="protocol",
        title="How it was measured",
        text=("The Fréchet distance rests on few samples, so it compares rows of this table and nothing else.",),
        warnings=warnings,
        tables=(Table(header=("", ""), rows=tuple(rows)),),
    )


_DIFFERENT = (
    "The combinations were compared with different real images (another source, size or crop), so their distances are "
    "of different things."
)


def _images(reference: Mapping[str, Any]) -> str:
    """Real images in a few words."""
    return f"{reference['count']} images of {reference['source']}/{reference['split']}, {reference['image_size']} px"


def _cell(row: Row, key: str) -> Cell:
    """A number, or in words what is none."""
    value = row["settings"][key]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(row["texts"][key])
