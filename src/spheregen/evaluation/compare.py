"""Evaluations side by side: which figures differ, by how much, and whether they may be compared at all."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, Strict, ValidationError

from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.compatibility import Doubt, doubts, settings_of
from spheregen.evaluation.report.figures import (
    COST_FIGURES,
    RECONSTRUCTION_FIGURES,
    SAMPLE_FIGURES,
    Better,
    Figure,
    figures_in,
)
from spheregen.evaluation.report.sections import FORMAT, RESULT

MOST_BYTES = 64 << 20
"""Larger files are refused before they are read."""
_SAME_MACHINE, _OTHER_MACHINE = 1e-6, 1e-3  # relative differences of a repeated figure that need no explanation

_Number = Annotated[float, Strict()] | None


class _Network(BaseModel):
    features: dict[str, Any]
    reference: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, _Number]


class _Result(BaseModel):
    """The parts of `evaluation.json` that must be there; the others are looked at where they are."""

    model: dict[str, Any]
    protocol: dict[str, Any]
    metrics: dict[str, _Network]


@dataclass(frozen=True, kw_only=True)
class ComparedFigure:
    """One figure of all results, in their order."""

    key: str
    """Such as `own/frechet`, `reconstruction/psnr`, `cost/gflops`."""
    title: str
    better: Better | None
    """None: neither direction is known to be a merit."""
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    """KID's standard error over its subsets, the Inception Score's deviation over its splits; None elsewhere."""
    apart: tuple[float | None, ...]
    """The difference to the first result over the root of both squared errors; the first is None."""
    comparable: bool
    """No warning speaks against comparing this figure."""
    best: int | None
    """The place of the best value; None if there is no single one, or figures cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two or more results side by side."""

    names: tuple[str, ...]
    """The folders or files, as they were given."""
    models: tuple[str, ...]
    figures: tuple[ComparedFigure, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    """What differs and is no obstacle: the dotted name of a setting, and its value in each result."""
    warnings: tuple[str, ...]
    """Why figures cannot be compared, or not be trusted."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "names": list(self.names),
            "models": list(self.models),
            "figures": [dataclasses.asdict(figure) for figure in self.figures],
            "settings": {name: list(values) for name, values in self.settings},
            "warnings": list(self.warnings),
        }


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare evaluations.

    Args:
        paths: files that `spheregen evaluate` wrote, or their folders; two or more, each once.

    Raises:
        ConfigError: fewer than two, or one of them twice.
        DataError: a file is missing, too large, or no result of an evaluation.
    """
    if len(paths) < 2:
        raise ConfigError(f"comparing takes two evaluations or more, not {len(paths)}; give folders with {RESULT}")
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise ConfigError(f"{paths[place]} is given twice; give each evaluation once")
    results = [read_result(path) for path in paths]
    names = tuple(str(path.parent if path.name == RESULT and path.parent.name else path) for path in paths)
    found = list(doubts(results, names))
    figures = tuple(_figures(results, found))
    warnings = [doubt.text for doubt in found] + list(_unexplained(results, names))
    return Comparison(
        names=names,
        models=tuple(str(result["model"].get("name") or "unnamed") for result in results),
        figures=figures,
        settings=tuple(settings_of(results)),
        warnings=tuple(warnings),
    )


def read_result(path: Path) -> dict[str, Any]:
    """The result in an `evaluation.json`, or in the one of a folder.

    Raises:
        DataError: it is missing, larger than `MOST_BYTES`, no JSON, or of another kind or version.
    """
    cure = "give what `spheregen evaluate --report` wrote"
    try:
        file = path / RESULT if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"there is no {file}; {cure}")
        if file.stat().st_size > MOST_BYTES:
            raise DataError(f"{file} is larger than {MOST_BYTES >> 20} MiB: no result of an evaluation; {cure}")
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or error}); check the path") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file} is no JSON ({reason}); {cure}") from error
    if not isinstance(found, dict) or "format" not in found:
        raise DataError(f"{file} is no result of an evaluation; {cure}")
    if found["format"] != FORMAT:
        shown = repr(found["format"])[:20]
        raise DataError(f"{file} has the format {shown}, this version reads {FORMAT}; evaluate again")
    try:
        _Result.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is no result of an evaluation ({where}: {first['msg'].lower()}); {cure}") from error
    return found


def _figures(results: Sequence[Mapping[str, Any]], found: Sequence[Doubt]) -> Iterator[ComparedFigure]:
    """All figures that any of the results has."""
    for network in dict.fromkeys(name for result in results for name in result["metrics"]):
        entries = [result["metrics"].get(network) or {} for result in results]
        values = [entry.get("figures") or {} for entry in entries]
        distance = next((entry["features"].get("distance") for entry in entries if entry), None)
        for figure in figures_in([key for one in values for key in one], SAMPLE_FIGURES):
            title = str(distance) if figure.key == "frechet" and distance else f"{figure.title} ({network})"
            yield from _if_any(f"{network}/{figure.key}", title, figure, values, found)
    rebuilt = [_mapping(result.get("reconstruction")) for result in results]
    for figure in RECONSTRUCTION_FIGURES:
        yield from _if_any(f"reconstruction/{figure.key}", f"reconstruction, {figure.title}", figure, rebuilt, found)
    distances = [_mapping(one.get("frechet")) for one in rebuilt]
    for network in dict.fromkeys(name for one in distances for name in one):
        figure, key = Figure(network, "", "lower"), f"reconstruction/frechet/{network}"
        yield from _if_any(key, f"reconstruction, Fréchet distance ({network})", figure, distances, found)
    costs = [_cost(result) for result in results]
    for figure in COST_FIGURES:
        yield from _if_any(f"cost/{figure.key}", figure.title, figure, costs, found)


def _if_any(
    key: str, title: str, figure: Figure, values: Sequence[Mapping[str, Any]], found: Sequence[Doubt]
) -> Iterator[ComparedFigure]:
    if any(_number(one.get(figure.key)) is not None for one in values):
        yield _compared(key, title, figure, values, found)


def _compared(
    key: str, title: str, figure: Figure, values: Sequence[Mapping[str, Any]], found: Sequence[Doubt]
) -> ComparedFigure:
    numbers = tuple(_number(one.get(figure.key)) for one in values)
    errors = tuple(None if figure.error is None else _number(one.get(figure.error)) for one in values)
    others = zip(numbers[1:], errors[1:], strict=True)
    comparable = not any(doubt.forbids and doubt.concerns(key) for doubt in found)
    return ComparedFigure(
        key=key,
        title=title,
        better=figure.better,
        values=numbers,
        errors=errors,
        apart=(None, *(_apart(numbers[0], value, errors[0], error) for value, error in others)),
        comparable=comparable,
        best=_best(numbers, figure.better) if comparable else None,
    )


def _apart(first: float | None, other: float | None, a: float | None, b: float | None) -> float | None:
    if first is None or other is None or a is None or b is None:
        return None
    error = math.hypot(a, b)
    return (other - first) / error if error > 0 else None


def _best(values: Sequence[float | None], better: Better | None) -> int | None:
    present = [value for value in values if value is not None]
    if better is None or len(present) < 2:
        return None
    best = min(present) if better == "lower" else max(present)
    return None if present.count(best) > 1 else values.index(best)


def _unexplained(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Figures that differ although model, samples, network and reference are the same."""
    for (one, a), (other, b) in combinations(zip(names, results, strict=True), 2):
        fingerprint = a["model"].get("fingerprint")
        if not fingerprint or fingerprint != b["model"].get("fingerprint"):
            continue
        machines = ("device", "threads", "batch", "torch", "spheregen")
        first, second = ({k: v for k, v in r["protocol"].items() if k not in machines} for r in (a, b))
        if first != second:
            continue
        tolerance = _SAME_MACHINE if a["protocol"] == b["protocol"] else _OTHER_MACHINE
        for network in a["metrics"].keys() & b["metrics"].keys():
            x, y = a["metrics"][network], b["metrics"][network]
            if x["features"] != y["features"] or x.get("reference") != y.get("reference"):
                continue
            for key in sorted(x["figures"].keys() & y["figures"].keys()):
                u, v = _number(x["figures"][key]), _number(y["figures"][key])
                if u is not None and v is not None and not math.isclose(u, v, rel_tol=tolerance, abs_tol=1e-9):
                    yield (
                        f"{one} and {other} have the same model, settings, network and reference, but {network}/{key} "
                        f"is {u:.6g} and {v:.6g}; the same evaluation gives the same figures, so one of the files "
                        "was changed or made by another version"
                    )
                    break


def _cost(result: Mapping[str, Any]) -> dict[str, Any]:
    """The cost of the number of steps that the samples took."""
    rows = _mapping(result.get("cost")).get("by_steps")
    steps = result["protocol"].get("steps")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and steps is not None and row.get("steps") == steps:
            return {**row, **{f"latency_{key}": value for key, value in _mapping(row.get("latency_ms")).items()}}
    return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None
