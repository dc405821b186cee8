"""The sections that come from the result itself: what was measured, on what, at which cost, and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spheregen.evaluation.report.figures import COST_FIGURES, RECONSTRUCTION_FIGURES, Figure, figures_in
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Table, is_number, table_of

FORMAT = 1
"""The version of what a result holds, its `format`."""
RESULT = "evaluation.json"
"""The file of a result in the folder of its report."""
Result = Mapping[str, Any]
"""The contents of `evaluation.json`."""

_HEADLINE = ("frechet", "kid", "inception_score", "class_score", "cmmd")
_COSTS = (("ms_per_image", "milliseconds per image"), ("gflops_per_image", "GFLOPs per image"))
_MOST_NAMES = 24
_HASH = re.compile("[0-9a-f]{32,}")


def report_sections(result: Result, studies: Sequence[Section] = ()) -> tuple[Section, ...]:
    """Return all sections of a report, those of other studies in the middle; what was not measured is left out."""
    made = [_summary(result), _metrics(result), _reconstruction(result), _curves(result)]
    made += [*studies, _cost(result), _protocol(result), _recipe(result)]
    return tuple(section for section in made if section is not None)


def reference_facts(reference: Mapping[str, Any], data: Any) -> Mapping[str, Any]:
    """Return what is said of a reference: by itself, and by the result's `data` where these are its images."""
    same = isinstance(data, Mapping) and reference.get("fingerprint") == data.get("fingerprint")
    return {**data, **reference} if same else reference


def figure_title(result: Result, network: str, figure: Figure) -> str:
    """Return a figure with its network: `FID` and the like for a Frechet distance whose network says so."""
    distance = result["metrics"].get(network, {}).get("features", {}).get("distance")
    return str(distance) if figure.key == "frechet" and distance else f"{figure.title} ({network})"


def cost_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one number of steps by the keys of `COST_FIGURES`."""
    latency = row.get("latency_ms")
    return {
        **row,
        **{f"latency_{key}": each for key, each in (latency if isinstance(latency, Mapping) else {}).items()},
    }


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


def _summary(result: Result) -> Section:
    """The line that says everything needed to repeat the figures, and the figures that people quote."""
    rows: list[tuple[Cell, ...]] = []
    for name, metric in result["metrics"].items():
        values, held_out = metric["figures"], metric.get("held_out") or {}
        for figure in figures_in(key for key in _HEADLINE if key in values):
            title, error = figure_title(result, name, figure), values.get(figure.error)
            rows.append((title, values[figure.key], error, held_out.get(figure.key), figure.better))
    rebuilt = result.get("reconstruction") or {}
    for figure in RECONSTRUCTION_FIGURES:
        if figure.key in rebuilt:
            rows.append((f"reconstruction, {figure.title}", rebuilt[figure.key], None, None, figure.better))
    return Section(
        key="summary",
        title="Summary",
        text=tuple(line for line in (result.get("line"), _sentence(result["model"])) if line),
        warnings=tuple(result.get("notes") or ()),
        tables=_table("", ("figure", "samples", "±", "held-out real images", "better is"), rows),
    )


def _metrics(result: Result) -> Section | None:
    """Every figure by every feature network, with what the networks and references are."""
    measured: Mapping[str, Any] = result["metrics"]
    if not measured:
        return None
    figures = figures_in(key for metric in measured.values() for key in metric["figures"])
    columns: list[tuple[str, Sequence[Cell]]] = [("figure", [figure.title for figure in figures])]
    facts: list[tuple[str, Sequence[Cell]]] = []
    for name, metric in measured.items():
        values, held_out = metric["figures"], metric.get("held_out") or {}
        columns.append((name, [values.get(figure.key) for figure in figures]))
        columns.append((f"{name}, ±", [values.get(figure.error) for figure in figures]))
        columns.append((f"{name}, held-out real", [held_out.get(figure.key) for figure in figures]))
    columns.append(("better is", [figure.better for figure in figures]))
    notes = [
        "Each feature network turns images into vectors; a figure compares those of the samples with those of the "
        "reference. The Fréchet distance (called FID with Inception features alone) and KID fall as the two sets "
        "become alike; precision and density say how many samples look real, recall and coverage how much of the real "
        "variety they reach. Figures of different networks, references, or sample counts cannot be compared."
    ]
    if any(metric.get("held_out") for metric in measured.values()):
        notes.append(
            "The held-out columns are a yardstick: real images that are not in the reference, measured in the same "
            "way. Figures near theirs are as good as this network can tell."
        )
    references = [reference_facts(metric.get("reference") or {}, result.get("data")) for metric in measured.values()]
    sources = [
        said.get("file") or "/".join(str(said[k]) for k in ("source", "split") if said.get(k)) for said in references
    ]
    facts = [("name", list(measured))]
    for key in ("title", "distance", "dim", "weights", "preprocessing"):
        facts.append((key, [metric["features"].get(key) for metric in measured.values()]))
    about: list[tuple[str, Sequence[Cell]]] = [("network", list(measured)), ("source", sources)]
    for key in ("count", "image_size", "fit", "resize", "kept"):
        about.append((key.replace("_", " "), [said.get(key) for said in references]))
    about.append(("fingerprint", [words(said.get("fingerprint")) for said in references]))
    return Section(
        key="metrics",
        title="Quality of the samples",
        text=tuple(notes),
        tables=(*table_of("Figures", columns), *table_of("Feature networks", facts), *table_of("References", about)),
    )


def _reconstruction(result: Result) -> Section | None:
    """How well images survive encoding and decoding."""
    found: Mapping[str, Any] = result.get("reconstruction") or {}
    if not found:
        return None
    rows: list[tuple[Cell, ...]] = [
        (figure.title, found[figure.key], figure.better) for figure in RECONSTRUCTION_FIGURES if figure.key in found
    ]
    for name, value in (found.get("frechet") or {}).items():
        rows.append((f"{figure_title(result, name, figures_in(['frechet'])[0])} of reconstructions", value, "lower"))
    images = " ".join(str(found[key]) for key in ("count", "split") if found.get(key))
    return Section(
        key="reconstruction",
        title="Reconstruction",
        text=(
            f"{images} images were encoded, put on the sphere without noise, and decoded. It is the best that the "
            "decoder can do where it knows the image, and bounds what it can generate.",
        ),
        tables=_table("", ("figure", "value", "better is"), rows),
    )


def _curves(result: Result) -> Section | None:
    """Plots of the Frechet distance over each swept setting, over time and over GFLOPs, and tables."""
    found: Sequence[Mapping[str, Any]] = [curve for curve in result.get("curves") or () if curve.get("points")]
    if not found:
        return None
    plots: list[Plot] = []
    for network in dict.fromkeys(name for curve in found for point in curve["points"] for name in point["figures"]):
        title = figure_title(result, network, figures_in(["frechet"])[0])
        for curve in found:
            if all(is_number(point["value"]) for point in curve["points"]):
                name, series = _setting(curve), _over(curve, "value", network)
                plots.append(Plot(title=f"{title} over {name}", x_label=name, y_label=title, series=(series,)))
        for key, label in _COSTS:
            lines = tuple(_over(curve, key, network) for curve in found)
            plots.append(Plot(title=f"{title} over {label}", x_label=label, y_label=title, series=lines, log_x=True))
    return Section(
        key="curves",
        title="Quality against cost",
        text=(
            "The same protocol with one setting changed at a time. A lower distance is better, and further left is "
            "cheaper; labels beside points are values of the setting. Distances of fewer samples are larger: compare "
            "points with one another, not with the figures above. Times are of whole batches.",
        ),
        plots=tuple(plots),
        tables=tuple(table for curve in found for table in _sweep(result, curve)),
    )


def _over(curve: Mapping[str, Any], x: str, network: str) -> Series:
    """The distance over the setting or over a cost, as a line in the order of the setting's values.

    Where the setting does not change the cost, points without labels: these would lie upon one another.
    """
    points = curve["points"]
    steady = x != "value" and len({point.get("gflops_per_image") for point in points}) < min(3, len(points))
    return Series(
        name=curve["name"],
        x=tuple(point[x] for point in points),
        y=tuple(point["figures"][network]["frechet"] for point in points),
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
            columns.append((figure_title(result, network, figure), [_of(one, network, figure.key) for one in points]))
            columns.append(("±", [_of(one, network, figure.error) for one in points]))
    columns += [(label, [point.get(cost) for point in points]) for cost, label in _COSTS]
    return table_of(f"Sweep of {curve['name']}, {curve['count']} samples each", columns)


def _of(point: Mapping[str, Any], network: str, key: str | None) -> Cell:
    value: Cell = point["figures"].get(network, {}).get(key)
    return value


def _cost(result: Result) -> Section | None:
    """Parameters, operations, measured speed and memory."""
    found: Mapping[str, Any] = result.get("cost") or {}
    if not found:
        return None
    kinds = {"parameters": "params", "GFLOPs for one image": "gflops", "with attention counted": "counted_gflops"}
    parts = list(found.get("params") or {})
    networks: list[tuple[str, Sequence[Cell]]] = [("network", [*parts, "together"])]
    for title, key in kinds.items():
        values = [(found.get(key) or {}).get(part) for part in parts]
        networks.append((title, [*values, sum(filter(None, values)) if key == "params" else None]))
    steps = [cost_row(one) for one in found.get("by_steps") or ()]
    speeds: list[tuple[str, Sequence[Cell]]] = [(key, [one.get(key) for one in steps]) for key in ("steps", "batch")]
    speeds += [(figure.title, [one.get(figure.key) for one in steps]) for figure in COST_FIGURES]
    facts = [f"{title} {words(found[key])}" for key, title in _MEASURED.items() if found.get(key) is not None]
    text = [f"Measured on {', '.join(facts)}."] if facts else []
    text.append("Speed is of whole batches; latency is that of one image made alone.")
    text += [f"Convention: {found['convention']}."] if found.get("convention") else []
    return Section(
        key="cost",
        title="Cost",
        text=tuple(text),
        tables=(*(table_of("Networks", networks) if parts else ()), *table_of("Generation", speeds)),
    )


_MEASURED = {"device": "device", "threads": "threads", "dtype": "type", "guidance": "guidance"}


def _protocol(result: Result) -> Section:
    """The settings that the figures depend on."""
    about = {key: result[key] for key in ("spheregen", "created") if key in result}
    model = {key: value for key, value in result["model"].items() if key != "training"}
    return Section(
        key="protocol",
        title="Protocol",
        text=(
            "Everything that the figures depend on. The same settings give the same samples: image i has its own seed.",
        ),
        tables=(
            *_settings("Sampling and measuring", {**result["protocol"], **about}),
            *_settings("Model", model),
            *_settings("Data", result.get("data") or {}),
        ),
    )


def _recipe(result: Result) -> Section | None:
    """How the model was trained, as far as it says."""
    training = result["model"].get("training")
    if not training:
        return None
    text = "What the model's folder says of its training."
    return Section(key="recipe", title="Training recipe", text=(text,), tables=_settings("", training))


def _table(title: str, header: tuple[str, ...], rows: Sequence[tuple[Cell, ...]]) -> tuple[Table, ...]:
    """A table if there are rows."""
    return (Table(title=title, header=header, rows=tuple(rows)),) if rows else ()


def _settings(title: str, nested: Mapping[str, Any]) -> tuple[Table, ...]:
    return _table(title, ("setting", "value"), [(path, words(value)) for path, value in leaves(nested)])


def _sentence(model: Mapping[str, Any]) -> str:
    """The model in a sentence."""
    facts = [model.get("class"), f"fingerprint {model['fingerprint']}" if model.get("fingerprint") else None]
    if model.get("params"):
        facts.append(f"{model['params'] / 1e6:.3g} M parameters")
    for key, title in (("image_shape", "images"), ("latent_shape", "a latent sphere")):
        if model.get(key):
            facts.append(f"{title} of {' x '.join(map(str, model[key]))}")
    facts.append(f"{model['num_classes']} classes" if model.get("num_classes") else "no classes")
    return f"Model: {model.get('name', 'unnamed')}; " + ", ".join(fact for fact in facts if fact) + "."


def _setting(curve: Mapping[str, Any]) -> str:
    name = str(curve["setting"]).replace("_", " ")
    return {"angle": "angle of the noise, degrees", "guidance": "guidance scale"}.get(name, name)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
