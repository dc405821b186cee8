"""Evaluations side by side: which figures differ, by how much, and whether they may be compared at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Strict, ValidationError

from spheregen.errors import ConfigError, DataError
from spheregen.evaluation.report.sections import (
    COST_FIGURES,
    FORMAT,
    RECONSTRUCTION_FIGURES,
    RESULT,
    Better,
    Figure,
    cost_row,
    figure_title,
    figures_in,
    leaves,
    reference_facts,
    words,
)
from spheregen.files import parse_json

MOST_BYTES = 64 << 20
"""Larger files are refused before they are read."""
_UNSAID = "not said"
_MUST_AGREE: Mapping[str, tuple[str, ...]] = {
    "protocol": ("count", "labels", "quantise", "dtype"),
    "model": ("image_shape",),
    "features": ("weights", "preprocessing", "dim"),
    "reference": ("images", "count", "image_size", "channels", "fit", "resize", "background", "kept"),
    "reconstruction": ("count", "source", "split"),
    "cost": ("device", "dtype", "threads", "batch"),
}
"""Settings that must agree before figures may be compared, by the part of a result that says them."""
_PARTS = {"protocol": "samples", "features": "feature network", "reconstruction": "reconstructions", "cost": "timing"}
_OF_NETWORKS = ("features", "reference")  # parts that each network of a result has
_SPOILT: Mapping[str, tuple[str, ...]] = {
    "protocol.dtype": (),  # a warning alone
    "model.image_shape": ("{}/", "reconstruction/"),
    "reference.kept": ("{}/kid", "{}/precision", "{}/recall", "{}/density", "{}/coverage", "{}/cmmd"),
    "reconstruction": ("reconstruction/",),
    "cost": ("cost/images_per_second", "cost/latency", "cost/peak_memory"),
}
"""Beginnings of the keys of the figures that a setting, or a part, concerns; {} is the network, else all."""


class _Network(BaseModel):
    features: dict[str, Any]
    reference: dict[str, Any] = {}
    figures: dict[str, Annotated[float, Strict()] | None]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")
    frechet: dict[str, Any] = {}
    by_steps: list[dict[str, Any]] = []


class _Result(BaseModel):
    """The parts of `evaluation.json` that are compared."""

    model: dict[str, Any]
    protocol: dict[str, Any]
    metrics: dict[str, _Network]
    data: dict[str, Any] = {}
    reconstruction: _Part | None = None
    cost: _Part | None = None


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
    settings: Mapping[str, tuple[str, ...]]
    """Differences that are no obstacle: the dotted name of a setting, and its value in each result."""
    warnings: tuple[str, ...]
    """Why figures cannot be compared, or not be trusted."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)


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
    warnings = dict(_warnings(results, names))
    return Comparison(
        names=names,
        models=tuple(str(result["model"].get("name") or "unnamed") for result in results),
        figures=tuple(_compared([_figures(result) for result in results], sum(warnings.values(), ()))),
        settings=_settings(results),
        warnings=tuple(warnings),
    )


def read_result(path: Path) -> dict[str, Any]:
    """Return the result in an `evaluation.json`, or in the one of a folder.

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
        found = parse_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or error}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON; {cure}") from error
    version = found.get("format", FORMAT) if isinstance(found, dict) else FORMAT
    if version != FORMAT:
        raise DataError(f"{file} has the format {version!r:.20}, this version reads {FORMAT}; evaluate again")
    try:
        return _Result.model_validate(found).model_dump()
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{file} is no result of an evaluation ({where or 'no object'}); {cure}") from error


def _warnings(results: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All that speaks against comparing these results, with the beginnings of the keys of the figures concerned."""
    networks = list(dict.fromkeys(network for result in results for network in result["metrics"]))
    for part, key in ((part, key) for part, keys in _MUST_AGREE.items() for key in keys):
        for network in networks if part in _OF_NETWORKS else [""]:
            told = []
            for result, name in zip(results, names, strict=True):
                table = _table(result, part, network)
                said = None if table is None else table.get(key)
                if table is not None and (said is not None or part != "reference"):  # published files say little
                    told.append((_UNSAID if said is None else words(said), name))
            if len({text for text, _ in told}) > 1:
                what = f"{key.replace('_', ' ')} of the {_PARTS.get(part, part)}"
                values = ", ".join(f"{text} ({name})" for text, name in told)
                spoilt = _SPOILT.get(f"{part}.{key}", _SPOILT.get(part, ("{}/",)))
                covers = tuple(each.format(one) for each in spoilt for one in ([network] if network else networks))
                yield f"{f'{network}: ' if network else ''}different {what}: {values}", covers


def _table(result: Mapping[str, Any], part: str, network: str) -> Mapping[str, Any] | None:
    """The settings of a result that a rule is about; None where it has nothing of the kind."""
    if not network:
        table: Mapping[str, Any] | None = result[part]
        return table if part != "cost" or table is None else {**(table["by_steps"] or [{}])[0], **table}
    metric = result["metrics"].get(network)
    if metric is None or part == "features":
        return None if metric is None else metric["features"]
    reference = reference_facts(metric["reference"], result["data"])
    source = "/".join(str(reference[key]) for key in ("file", "source", "split") if reference.get(key))
    return {**reference, "images": reference.get("fingerprint") or source or None}  # one set goes by several names


def _settings(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Differences that are no obstacle: settings of sampling, the model, its training, versions."""
    found = {}
    for part, prefix in (("model", "model."), ("protocol", "")):
        tables = [dict(leaves(result[part])) for result in results]
        for name in dict.fromkeys(key for table in tables for key in table):
            values = [table.get(name, _UNSAID) for table in tables]
            if any(value != values[0] for value in values) and (prefix or name not in _MUST_AGREE["protocol"]):
                found[prefix + name] = tuple(map(words, values))
    return found


def _figures(result: Mapping[str, Any]) -> dict[str, tuple[Figure, float | None, float | None]]:
    """All figures of a result by key, each with its value and its error."""
    found = {}

    def add(prefix: str, figure: Figure, table: Mapping[str, Any], title: str) -> None:
        named = dataclasses.replace(figure, title=title)
        found[f"{prefix}/{figure.key}"] = named, _number(table.get(figure.key)), _number(table.get(figure.error or ""))

    for network, metric in result["metrics"].items():
        for figure in figures_in(metric["figures"]):
            add(network, figure, metric["figures"], figure_title(result, network, figure))
    rebuilt = result["reconstruction"] or {"frechet": {}}
    for figure in RECONSTRUCTION_FIGURES:
        add("reconstruction", figure, rebuilt, f"reconstruction, {figure.title}")
    for name in rebuilt["frechet"]:
        title = f"reconstruction, Fréchet distance ({name})"
        add("reconstruction/frechet", Figure(name, title, "lower"), rebuilt["frechet"], title)
    steps, rows = result["protocol"].get("steps"), (result["cost"] or {"by_steps": []})["by_steps"]
    row = next((cost_row(row) for row in rows if steps is not None and row.get("steps") == steps), {})
    for figure in COST_FIGURES:
        add("cost", figure, row, figure.title)
    return found


def _compared(tables: Sequence[Mapping[str, Any]], spoilt: Sequence[str]) -> Iterator[ComparedFigure]:
    """The figures that any of the results has; `spoilt`: beginnings of keys that cannot be compared."""
    for key in dict.fromkeys(key for table in tables for key in table):
        figure = next(table[key][0] for table in tables if key in table)
        values, errors = zip(*(table.get(key, (None, None, None))[1:] for table in tables), strict=True)
        present = [value for value in values if value is not None]
        if not present:
            continue
        comparable = not key.startswith(tuple(spoilt))
        best = max(present) if figure.better == "higher" else min(present)
        single = comparable and figure.better is not None and len(present) > 1 and present.count(best) == 1
        yield ComparedFigure(
            key=key,
            title=figure.title,
            better=figure.better,
            values=values,
            errors=errors,
            apart=(None, *(_apart(values[0], errors[0], *other) for other in zip(values[1:], errors[1:], strict=True))),
            comparable=comparable,
            best=values.index(best) if single else None,
        )


def _apart(first: float | None, error: float | None, other: float | None, others: float | None) -> float | None:
    if first is None or error is None or other is None or others is None or not (both := math.hypot(error, others)):
        return None
    return (other - first) / both


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if finite else None
