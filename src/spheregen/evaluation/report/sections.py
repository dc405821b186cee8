"""The sections that come from the result itself: what was measured, on what, at which cost, and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Table, is_number, table_of
from spheregen.measure.fidelity import SSIM_WINDOW

FORMAT = 1
"""The version of what a result holds, its `format`."""
RESULT = "evaluation.json"
"""The file of a result in the folder of its report."""
Result = Mapping[str, Any]
"""The contents of `evaluation.json`."""
Better = Literal["lower", "higher"]

_COSTS = (("ms_per_image", "milliseconds per image"), ("gflops_per_image", "GFLOPs per image"))
_MOST_NAMES = 24
_HASH = re.compile("[0-9a-f]{32,}")


@dataclass(frozen=True)
class Figure:
    """One kind of figure."""

    key: str
    """Its name in `evaluation.json`."""
    title: str
    better: Better | None = None
    """None where neither direction is a merit, or we do not know the figure."""
    error: str = ""
    """The key of its error in the same mapping."""


FRECHET = Figure("frechet", "Fréchet distance", "lower")
CLASS_ACCURACY = Figure("class_accuracy", "class accuracy", "higher")
SAMPLE_FIGURES = (
    CLASS_ACCURACY,
    Figure("class_accuracy_of_real", "class accuracy, of real images", "higher"),
    FRECHET,
    Figure("kid", "KID", "lower", "kid_error"),
    Figure("inception_score", "Inception Score", "higher", "inception_score_deviation"),
    Figure("class_score", "class score", "higher", "class_score_deviation"),
    Figure("precision", "precision", "higher"),
    Figure("recall", "recall", "higher"),
    Figure("density", "density", "higher"),
    Figure("coverage", "coverage", "higher"),
    Figure("cmmd", "CMMD", "lower"),
)
"""Of samples against a reference, by one feature network."""
RECONSTRUCTION_FIGURES = (
    Figure("psnr", "PSNR, dB", "higher"),
    Figure("ssim", "SSIM", "higher"),
    Figure("lpips", "LPIPS", "lower"),
)
"""Of images that were encoded and decoded, against the images."""
COST_FIGURES = (
    Figure("gflops", "GFLOPs per image", "lower"),
    Figure("counted_gflops", "GFLOPs per image, attention counted", "lower"),
    Figure("images_per_second", "images per second", "higher"),
    Figure("latency_p50", "latency p50, ms", "lower"),
    Figure("latency_p90", "latency p90, ms", "lower"),
    Figure("latency_p99", "latency p99, ms", "lower"),
    Figure("peak_memory_mb", "peak memory, MiB", "lower"),
)
"""Of generating in some number of steps."""


def figures_in(keys: Iterable[str]) -> list[Figure]:
    """Return the figures of samples in `keys`, the known ones first and in their order; errors are no figures."""
    present = dict.fromkeys(keys)
    known = {name for figure in SAMPLE_FIGURES for name in (figure.key, figure.error)}
    others = [Figure(key, key.replace("_", " ")) for key in present if key not in known]
    return [figure for figure in SAMPLE_FIGURES if figure.key in present] + others


def figure_title(result: Result, network: str, figure: Figure) -> str:
    """Return a figure with its network: `FID` and the like for a Frechet distance whose network says so."""
    distance = result["metrics"].get(network, {}).get("features", {}).get("distance")
    return str(distance) if figure.key == "frechet" and distance else f"{figure.title} ({network})"


def reference_facts(reference: Mapping[str, Any], data: Any) -> Mapping[str, Any]:
    """Return what is said of a reference: by itself, and by the result's `data` where these are its images."""
    same = isinstance(data, Mapping) and reference.get("fingerprint") == data.get("fingerprint")
    return {**data, **reference} if same else reference


def cost_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one number of steps by the keys of `COST_FIGURES`."""
    latency = row.get("latency_ms")
    percentiles = latency.items() if isinstance(latency, Mapping) else ()
    return {**row, **{f"latency_{key}": value for key, value in percentiles}}


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested settings with their dotted paths."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def words(value: Any) -> str:
    """Return a setting as text; of long lists and hashes the beginning."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _MOST_NAMES} more" if len(value) > _MOST_NAMES else ""
        return ", ".join(map(words, value[:_MOST_NAMES])) + more
    return f"{value[:16]}…" if isinstance(value, str) and _HASH.fullmatch(value) else str(value)


def report_sections(result: Result, studies: Sequence[Section] = ()) -> tuple[Section, ...]:
    """Return all sections of a report, those of other studies in the middle; what was not measured is left out."""
    line, notes = result.get("line"), tuple(result.get("notes") or ())
    made = [Section(key="summary", title="Summary", text=(line,) if line else (), warnings=notes)]
    for key, section in (("metrics", _metrics), ("reconstruction", _reconstruction), ("curves", _curves)):
        made += [section(result)] if result.get(key) else []
    made += [*studies, *([_cost(result["cost"])] if result.get("cost") else []), _protocol(result)]
    if training := result["model"].get("training"):
        made.append(Section(key="recipe", title="Training recipe", tables=settings_table("", training)))
    return tuple(made)


def _metrics(result: Result) -> Section:
    """Every figure by every feature network."""
    rows = []
    for name, metric in result["metrics"].items():
        values, held_out = metric["figures"], metric.get("held_out") or {}
        for figure in figures_in(values):
            numbers = (values[figure.key], values.get(figure.error), held_out.get(figure.key))
            rows.append((figure_title(result, name, figure), *numbers, figure.better))
    header = ("figure", "samples", "±", "held-out real", "better is")
    columns = list(zip(header, zip(*rows, strict=True), strict=True)) if rows else []
    why = "the figure has no error estimate, or is not measured of held-out images"
    return Section(
        key="metrics",
        title="Quality of the samples",
        text=(
            "Each feature network turns images into vectors; a figure compares those of the samples with those of the "
            "reference. The Fréchet distance (called FID with Inception features alone) and KID fall as the two sets "
            "become alike; precision and density say how many samples look real, recall and coverage how much of the "
            "real variety they reach. Figures of different networks, references, or sample counts cannot be compared.",
            "Held-out figures are of real images that are not in the reference: what a perfect generator would get. A "
            "figure that could not be had is named with the reason in the summary.",
        ),
        tables=table_of("", columns, missing=why),
    )


def _reconstruction(result: Result) -> Section:
    """How well images survive encoding and decoding."""
    found: Mapping[str, Any] = result["reconstruction"]
    rows: list[tuple[Cell, ...]] = [
        (figure.title, found[figure.key], figure.better) for figure in RECONSTRUCTION_FIGURES if figure.key in found
    ]
    for name, value in (found.get("frechet") or {}).items():
        rows.append((f"{figure_title(result, name, FRECHET)} of reconstructions", value, "lower"))
    why = f"LPIPS where its weights are not found, SSIM of images below {SSIM_WINDOW} pixels"
    images = " ".join(str(found[key]) for key in ("count", "split") if found.get(key))
    return Section(
        key="reconstruction",
        title="Reconstruction",
        text=(
            f"{images} images were encoded, put on the sphere without noise, and decoded. It is the best that the "
            "decoder can do where it knows the image, and bounds what it can generate.",
        ),
        tables=(Table(header=("figure", "value", "better is"), rows=tuple(rows), missing=why),),
    )


def _curves(result: Result) -> Section:
    """Plots of the Frechet distance over each swept setting, over time and over GFLOPs, and tables."""
    found: Sequence[Mapping[str, Any]] = [curve for curve in result["curves"] if curve["points"]]
    plots: list[Plot] = []
    for network in dict.fromkeys(name for curve in found for point in curve["points"] for name in point["figures"]):
        title = figure_title(result, network, FRECHET)
        for figure in (FRECHET, CLASS_ACCURACY):
            label = figure_title(result, network, figure)
            for curve in found:
                values = [point["value"] for point in curve["points"]]
                if all(map(is_number, values)) and figure.key in curve["points"][0]["figures"][network]:
                    name, series = _setting(curve), _over(curve, "value", network, figure.key)
                    plots.append(Plot(title=f"{label} over {name}", x_label=name, y_label=label, series=(series,)))
        for key, label in _COSTS:
            lines = tuple(_over(curve, key, network) for curve in found)
            plots.append(Plot(title=f"{title} over {label}", x_label=label, y_label=title, series=lines, log_x=True))
    return Section(
        key="curves",
        title="Quality against cost",
        text=(
            "The same protocol with one setting changed at a time. A lower distance and more right classes are better, "
            "further left is "
            "cheaper; labels beside points are values of the setting. Distances of fewer samples are larger: compare "
            "points with one another, not with the figures above. Times are of whole batches.",
        ),
        plots=tuple(plots),
        tables=tuple(table for curve in found for table in _sweep(result, curve)),
    )


def _over(curve: Mapping[str, Any], x: str, network: str, figure: str = FRECHET.key) -> Series:
    """A figure over the setting or over a cost, as a line in the order of the setting's values.

    Where the setting does not change the cost, points without labels: these would lie upon one another.
    """
    points = curve["points"]
    steady = x != "value" and len({point.get("gflops_per_image") for point in points}) < min(3, len(points))
    return Series(
        name=curve["name"],
        x=tuple(point[x] for point in points),
        y=tuple(point["figures"][network][figure] for point in points),
        kind="points" if steady else "line",
        labels=None if steady or x == "value" else tuple(_label(point["value"]) for point in points),
    )


def _sweep(result: Result, curve: Mapping[str, Any]) -> tuple[Table, ...]:
    """All figures of a sweep, a row for each point."""
    points: Sequence[Mapping[str, Any]] = curve["points"]
    values = [point["value"] for point in points]
    columns: list[tuple[str, Sequence[Cell]]] = [
        (_setting(curve), values if all(map(is_number, values)) else list(map(_label, values)))
    ]
    for network, figures in points[0]["figures"].items():
        for figure in figures_in(figures):
            for title, key in ((figure_title(result, network, figure), figure.key), ("±", figure.error)):
                columns.append((title, [point["figures"].get(network, {}).get(key) for point in points]))
    columns += [(label, [point.get(cost) for point in points]) for cost, label in _COSTS]
    why = "this point could not be measured, or its figure has no error estimate"
    return table_of(f"Sweep of {curve['name']}, {curve['count']} samples each", columns, missing=why)


def _cost(found: Mapping[str, Any]) -> Section:
    """Parameters, operations, measured speed and memory."""
    kinds = {"parameters": "params", "GFLOPs for one image": "gflops", "with attention counted": "counted_gflops"}
    parts = list(found.get("params") or {})
    networks: list[tuple[str, Sequence[Cell]]] = [("network", parts)]
    networks += [(title, [(found.get(key) or {}).get(part) for part in parts]) for title, key in kinds.items()]
    steps = [cost_row(one) for one in found.get("by_steps") or ()]
    speeds: list[tuple[str, Sequence[Cell]]] = [(key, [one.get(key) for one in steps]) for key in ("steps", "batch")]
    speeds += [(figure.title, [one.get(figure.key) for one in steps]) for figure in COST_FIGURES]
    how = {key: found[key] for key in ("device", "threads", "dtype", "guidance", "convention") if key in found}
    return Section(
        key="cost",
        title="Cost",
        text=("Speed is of whole batches; latency is that of one image made alone.",),
        tables=(*table_of("Networks", networks), *table_of("Generation", speeds), *settings_table("Measured on", how)),
    )


def _protocol(result: Result) -> Section:
    about = {key: result[key] for key in ("spheregen", "created") if key in result}
    model = {key: value for key, value in result["model"].items() if key != "training"}
    networks: list[Table] = []
    for name, metric in result["metrics"].items():
        reference = reference_facts(metric.get("reference") or {}, result.get("data"))
        networks += settings_table(f"Network and reference: {name}", {**metric["features"], "reference": reference})
    return Section(
        key="protocol",
        title="Protocol",
        text=(
            "Everything that the figures depend on. The same settings give the same samples: image i has its own seed.",
        ),
        tables=(
            *settings_table("Sampling and measuring", {**result["protocol"], **about}),
            *settings_table("Model", model),
            *settings_table("Data", result.get("data") or {}),
            *networks,
        ),
    )


def settings_table(title: str, nested: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return a table of nested settings by their dotted paths; none where there are none."""
    rows = tuple((path, words(value)) for path, value in leaves(nested))
    return (Table(title=title, header=("setting", "value"), rows=rows),) if rows else ()


def _setting(curve: Mapping[str, Any]) -> str:
    name = str(curve["setting"]).replace("_", " ")
    return {"angle": "angle of the noise, degrees", "guidance": "guidance scale"}.get(name, name)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
