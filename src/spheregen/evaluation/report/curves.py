"""Quality against what it costs: over a setting, over measured time, over operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spheregen.evaluation.report.cells import is_number
from spheregen.evaluation.report.figures import figures_in
from spheregen.evaluation.report.parts import Cell, Plot, Section, Series, Table

_COSTS = (("ms_per_image", "milliseconds per image"), ("gflops_per_image", "GFLOPs per image"))
_DRAWN = ("frechet", "cmmd", "kid")  # the first of these that was measured


def curves(result: Mapping[str, Any]) -> Section | None:
    """The sweeps of a result: plots of the distance over each swept setting, over time and over GFLOPs, and tables."""
    found: Sequence[Mapping[str, Any]] = [curve for curve in result.get("curves") or () if curve.get("points")]
    if not found:
        return None
    networks = list(dict.fromkeys(name for curve in found for point in curve["points"] for name in point["figures"]))
    plots: list[Plot] = []
    for network in networks:
        drawn = next((key for key in _DRAWN if any(_values(curve, network, key) for curve in found)), None)
        if drawn is None:
            continue
        title = _title(result, network, drawn)
        plots += [plot for curve in found if (plot := _over_setting(curve, network, drawn, title)) is not None]
        for key, label in _COSTS:
            series = tuple(made for curve in found if (made := _over_cost(curve, network, drawn, key)) is not None)
            if series:
                plots.append(
                    Plot(title=f"{title} over {label}", x_label=label, y_label=title, series=series, log_x=True)
                )
    return Section(
        key="curves",
        title="Quality against cost",
        text=(
            "The same protocol with one setting changed at a time. A lower distance is better, and further left is "
            "cheaper; labels beside points are values of the setting. Distances of fewer samples are larger: compare "
            "points with one another, not with the figures above. Times are of whole batches.",
        ),
        plots=tuple(plots),
        tables=tuple(_table(result, curve) for curve in found),
    )


def _values(curve: Mapping[str, Any], network: str, key: str) -> list[float]:
    return [
        point["figures"][network][key]
        for point in curve["points"]
        if point["figures"].get(network, {}).get(key) is not None
    ]


def _title(result: Mapping[str, Any], network: str, key: str) -> str:
    if key == "frechet":
        features = result["metrics"].get(network, {}).get("features", {})
        return str(features.get("distance") or f"Fréchet distance ({network})")
    return f"{figures_in([key])[0].title} ({network})"


def _over_setting(curve: Mapping[str, Any], network: str, key: str, title: str) -> Plot | None:
    """The figure over the swept setting, if its values are numbers."""
    points = [
        (point["value"], point["figures"][network][key], point["figures"][network].get(f"{key}_error"))
        for point in curve["points"]
        if point["figures"].get(network, {}).get(key) is not None
    ]
    if not points or not all(is_number(value) for value, _, _ in points):
        return None
    x, y, errors = zip(*points, strict=True)
    setting = _setting(curve)
    series = Series(
        name=curve["name"], x=x, y=y, error=None if any(error is None for error in errors) else tuple(errors)
    )
    return Plot(title=f"{title} over {setting}", x_label=setting, y_label=title, series=(series,))


def _over_cost(curve: Mapping[str, Any], network: str, key: str, cost: str) -> Series | None:
    """The figure over a cost, in the order of the setting's values: a line with labels where the setting changes the
    cost, else points, as labels would lie upon one another."""
    points = [
        point
        for point in curve["points"]
        if point["figures"].get(network, {}).get(key) is not None and point.get(cost) is not None
    ]
    if not points:
        return None
    steady = len({point.get("gflops_per_image") for point in points}) < min(3, len(points))
    return Series(
        name=curve["name"],
        x=tuple(point[cost] for point in points),
        y=tuple(point["figures"][network][key] for point in points),
        kind="points" if steady else "line",
        labels=None if steady else tuple(_label(point["value"]) for point in points),
    )


def _setting(curve: Mapping[str, Any]) -> str:
    name = str(curve["setting"]).replace("_", " ")
    return {"angle": "angle of the noise, degrees", "guidance": "guidance scale"}.get(name, name)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(result: Mapping[str, Any], curve: Mapping[str, Any]) -> Table:
    """All figures of a sweep, a row for each point."""
    points = curve["points"]
    columns: list[tuple[str, list[Cell]]] = []
    for network in dict.fromkeys(name for point in points for name in point["figures"]):
        measured = [point["figures"].get(network, {}) for point in points]
        for figure in figures_in(key for one in measured for key in one):
            title = _title(result, network, "frechet") if figure.key == "frechet" else f"{figure.title} ({network})"
            columns.append((title, [one.get(figure.key) for one in measured]))
            errors: list[Cell] = [one.get(figure.error) for one in measured]
            if any(error is not None for error in errors):
                columns.append(("±", errors))
    for cost, label in _COSTS:
        if any(point.get(cost) is not None for point in points):
            columns.append((label, [point.get(cost) for point in points]))
    count = f", {curve['count']} samples each" if curve.get("count") else ""
    return Table(
        title=f"Sweep of {curve['name']}{count}",
        header=(_setting(curve), *(title for title, _ in columns)),
        rows=tuple(
            (_cell(point["value"]), *(values[place] for _, values in columns)) for place, point in enumerate(points)
        ),
    )


def _cell(value: Any) -> Cell:
    return value if value is None or isinstance(value, str | int | float) else str(value)
