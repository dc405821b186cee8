"""The curves of a run's log, as numbers and as an image."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spheregen.drawing import look, new_figure, plain_ticks
from spheregen.errors import ConfigError, did_you_mean
from spheregen.files import atomic_path, parse_json
from spheregen.training.log import LOG

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"
FORMATS = (".png", ".svg", ".pdf")
# panels of a run in the order in which they are drawn: title, metrics; what fits none gets a panel of its own
_PANELS = {
    "loss and its unweighted terms": ("loss", "*_reconstruction", "*_consistency", "uniformity"),
    "gradient norm, before clipping": ("grad_norm",),
    "learning rate": ("lr",),
    "images per second": ("images_per_second",),
    "MFU, model FLOPs utilisation": ("mfu",),
    "latent angles, degrees": ("latent_*_angle",),
    "latent coverage of the sphere": ("latent_coverage",),
    "latent radius, RMS before the sphere": ("latent_radius",),
    "standard deviation over the batch": ("image_deviation", "data_deviation"),
}
_LOGARITHMIC = tuple(_PANELS)[:2]
_NOT_DRAWN = ("step", "epoch")  # the x axis, and the same in other units


@dataclass(frozen=True)
class Series:
    """One metric of a run, in the order of its steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    """As many as steps; not all of them need be finite."""


def read_series(run: Path) -> dict[str, Series]:
    """Return the metrics in the log of a run folder, by name. A run may go on: a half-written line is left out.

    Where a step occurs twice its later line counts. Values that are no numbers are left out.

    Raises:
        ConfigError: there is no such folder, no log in it, or nothing in the log yet.
    """
    path = run / LOG
    if not path.is_file():
        problem = "has no log.jsonl" if run.is_dir() else "does not exist"
        raise ConfigError(f"{run} {problem}; give the folder of a run of `spheregen train`")
    points: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            entry = parse_json(line)
            step = operator.index(entry["step"])
            for name, value in entry.items():
                if name not in _NOT_DRAWN and isinstance(value, (int, float)) and not isinstance(value, bool):
                    points.setdefault(name, {})[step] = float(value)
    if not points:
        raise ConfigError(f"{path} has no entry yet; a run writes the first one after train.log_every steps")
    ordered = {name: sorted(values.items()) for name, values in points.items()}
    return {name: Series(*zip(*values, strict=True)) for name, values in ordered.items()}


def training_seconds(images_per_second: Series, batch_size: int, until: int | None = None) -> float:
    """Return the time of a run's steps from its log, up to and with step `until`: interruptions are no part of it."""
    seconds, last = 0.0, 0
    for step, rate in zip(images_per_second.steps, images_per_second.values, strict=True):
        end = step if until is None else min(step, until)
        seconds += max(0, end - last) * batch_size / rate
        last = step
    return seconds


def seconds_of_log(run: Path, batch_size: int) -> float:
    """Return the time of the steps that are in the log of a run folder; 0 where there is none."""
    with contextlib.suppress(ConfigError, KeyError, ZeroDivisionError):
        return training_seconds(read_series(run)["images_per_second"], batch_size)
    return 0.0


def choose_metrics(runs: Mapping[str, Mapping[str, Series]], only: Sequence[str] | None) -> list[str]:
    """Return the metrics to show, in the order of the logs: all, or those that `only` names.

    Raises:
        ConfigError: a name that is in none of the logs.
    """
    known = list(dict.fromkeys(name for series in runs.values() for name in series))
    for name in only or ():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"no log has the metric {name!r}{hint}; there are: {', '.join(known)}")
    return known if only is None else list(dict.fromkeys(only))


def summary(series: Series) -> dict[str, float | int | None]:
    """Return a series in numbers: `count`, `last`, `last_step`, `min`, `min_step`, `max`, `max_step`.

    Values that are not finite are not counted, except that `last` is None where the last one is not finite. All are
    None if none is finite.
    """
    finite = [(value, step) for step, value in zip(series.steps, series.values, strict=True) if math.isfinite(value)]
    low = min(finite, default=(None, None))
    high = max(finite, key=lambda point: point[0], default=(None, None))
    return {
        "count": len(finite),
        "last": series.values[-1] if math.isfinite(series.values[-1]) else None,
        "last_step": series.steps[-1],
        "min": low[0],
        "min_step": low[1],
        "max": high[0],
        "max_step": high[1],
    }


def smoothed(values: Sequence[float], count: int) -> list[float]:
    """Return the mean of each value and its neighbours, `count` in all and centred; fewer at both ends.

    Values that are not finite become NaN and are left out of the means.
    """
    before, after = (count - 1) // 2, count // 2
    result = []
    for place, value in enumerate(values):
        window = [each for each in values[max(0, place - before) : place + after + 1] if math.isfinite(each)]
        result.append(math.fsum(window) / len(window) if math.isfinite(value) else math.nan)
    return result


def draw_curves(
    runs: Mapping[str, Mapping[str, Series]], path: Path, *, only: Sequence[str] | None = None, smooth: int = 1
) -> None:
    """Draw the curves of one or more runs over their steps.

    One run has a panel for each group of metrics that belong together; several have one for each metric, where a run
    has the same colour everywhere. Panels of losses and gradient norms have a logarithmic axis.

    Args:
        runs: the series of `read_series` by the label of the run; at least one run.
        path: the image, `.png`, `.svg` or `.pdf`.
        only: the metrics to draw; None for all.
        smooth: log entries to average over; with more than one the raw curves stay behind the smooth ones, in pale.

    Raises:
        ConfigError: the kind of image or a metric is unknown, or `smooth` is below 1.
        SphereGenError: matplotlib is missing, or the image cannot be written.
    """
    kind = path.suffix.lower()
    if smooth < 1:
        raise ConfigError(f"a curve is smoothed over at least 1 log entry, not {smooth}")
    if kind not in FORMATS:
        raise ConfigError(f"an image of curves ends in {', '.join(FORMATS)}, not {path.name!r}")
    panels = _panels(choose_metrics(runs, only), grouped=len(runs) == 1)
    columns = len(panels) if len(panels) < 3 else 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    with new_figure(max(5.6, 4.6 * columns), 2.9 * rows + 0.7, font_size=9.0, savefig_facecolor="white") as figure:
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for (title, metrics, log), axes in zip(panels, places, strict=False):
            handles |= _draw_panel(axes, metrics, log, runs, smooth)
            axes.set_title(title, fontsize=9.5, loc="left")
        for axes in places[len(panels) :]:
            axes.remove()
        title = f"means over {smooth} log entries" if smooth > 1 else ""
        if len(runs) > 1:
            columns = min(4, len(runs))
            figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, title=title)
        else:
            figure.suptitle(next(iter(runs)) + (f" ({title})" if title else ""), fontsize=11)
        metadata = {"Software": "spheregen", "runs": ", ".join(runs)} if kind == ".png" else {"Creator": "spheregen"}
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind[1:], dpi=120, metadata=metadata)


def _panels(metrics: Sequence[str], *, grouped: bool) -> list[tuple[str, list[str], bool]]:
    """Title, metrics and whether logarithmic, of each panel: in the order of `_PANELS`, then as metrics come."""
    left = list(metrics)
    panels: list[tuple[str, list[str], bool]] = []
    for title, patterns in _PANELS.items():
        members = [name for pattern in patterns for name in left if fnmatch.fnmatchcase(name, pattern)]
        left = [name for name in left if name not in members]
        log = title in _LOGARITHMIC
        if grouped and members:
            panels.append((title if len(members) > 1 else f"{title} ({members[0]})", members, log))
        else:
            panels += [(name, [name], log) for name in members]
    return [*panels, *((name, [name], False) for name in left)]


def _draw_panel(
    axes: Axes, metrics: Sequence[str], log: bool, runs: Mapping[str, Mapping[str, Series]], smooth: int
) -> dict[str, Any]:
    """Draw one panel; returns a line of each run by its label, for the legend of the figure."""
    from matplotlib.ticker import MaxNLocator

    handles: dict[str, Any] = {}
    for number, (label, series) in enumerate(runs.items()):
        for place, name in enumerate(metrics):
            if name not in series:
                continue
            style, points = look(place if len(runs) == 1 else number), series[name]
            finite = [value for value in points.values if math.isfinite(value)]
            log = log and bool(finite) and min(finite) > 0
            if len(finite) == 1:  # a line needs two
                style |= {"marker": "o", "markersize": 3}
            if smooth > 1:
                axes.plot(points.steps, points.values, color=style["color"], linewidth=0.8, alpha=0.25)
            line = axes.plot(points.steps, smoothed(points.values, smooth), linewidth=1.5, label=name, **style)
            handles[label] = line[0]
    plain_ticks(axes, log_y=log)
    if len(runs) == 1 and len(metrics) > 1:
        axes.legend(fontsize=7.5, frameon=True, framealpha=0.8, edgecolor="none", loc="best")
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.grid(True)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.01)
    return handles
