"""The sections that come from the result itself: what was measured, on what, at which cost, and how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spheregen.evaluation.report.curves import curves
from spheregen.evaluation.report.figures import COST_FIGURES, RECONSTRUCTION_FIGURES, Figure, figures_in
from spheregen.evaluation.report.parts import Cell, Section, Table

FORMAT = 1
"""The version of what a result holds, its `format`."""
RESULT = "evaluation.json"
"""The file of a result in the folder of its report."""
Result = Mapping[str, Any]
"""What `evaluation.json` holds."""

_HEADLINE = ("frechet", "kid", "inception_score", "class_score", "cmmd")
_MOST_NAMES = 24
_HASH = re.compile("[0-9a-f]{32,}")
_HASH_SHOWN = 16  # digits; the JSON has all


def report_sections(result: Result, studies: Sequence[Section] = ()) -> tuple[Section, ...]:
    """All sections of a report, the findings of other studies in the middle. What was not measured is left out."""
    made = [summary(result), metrics(result), reconstruction(result), curves(result)]
    made += [*studies, cost(result), protocol(result), recipe(result)]
    return tuple(section for section in made if section is not None)


def summary(result: Result) -> Section:
    """The line that says everything needed to repeat the figures, and the figures that people quote."""
    rows: list[tuple[Cell, ...]] = []
    for name, metric in result["metrics"].items():
        held_out = metric.get("held_out") or {}
        for figure in figures_in(metric["figures"]):
            if figure.key in _HEADLINE:
                rows.append(
                    (
                        _distance(metric) if figure.key == "frechet" else f"{figure.title} ({name})",
                        metric["figures"][figure.key],
                        metric["figures"].get(figure.error),
                        held_out.get(figure.key),
                        _better(figure),
                    )
                )
    rebuilt = result.get("reconstruction") or {}
    for figure in figures_in(rebuilt, RECONSTRUCTION_FIGURES):
        if figure in RECONSTRUCTION_FIGURES:
            rows.append((f"reconstruction, {figure.title}", rebuilt[figure.key], None, None, _better(figure)))
    header = ("figure", "samples", "±", "held-out real images", "better is")
    return Section(
        key="summary",
        title="Summary",
        text=tuple(line for line in (result.get("line"), _sentence(result["model"])) if line),
        warnings=tuple(result.get("notes") or ()),
        tables=(Table(header=header, rows=tuple(rows)),) if rows else (),
    )


def metrics(result: Result) -> Section | None:
    """Every figure by every feature network, with what the networks and references are."""
    measured: Mapping[str, Any] = result["metrics"]
    if not measured:
        return None
    header, columns = ["figure"], []
    figures = figures_in(key for metric in measured.values() for key in metric["figures"])
    for name, metric in measured.items():
        errors: list[Cell] = [metric["figures"].get(figure.error) for figure in figures]
        columns.append((name, [metric["figures"].get(figure.key) for figure in figures]))
        if any(error is not None for error in errors):
            columns.append((f"{name}, ±", errors))
        if metric.get("held_out"):
            columns.append((f"{name}, held-out real", [metric["held_out"].get(figure.key) for figure in figures]))
    header += [title for title, _ in columns]
    rows = tuple(
        (figure.title, *(values[place] for _, values in columns), _better(figure))
        for place, figure in enumerate(figures)
    )
    networks = tuple(_network(name, metric["features"]) for name, metric in measured.items())
    references = tuple(_reference(name, metric, result.get("data") or {}) for name, metric in measured.items())
    notes = [
        "Each feature network turns images into vectors; a figure compares those of the samples with those of the "
        "reference. The Fréchet distance (called FID with Inception features alone) and KID fall as the two sets "
        "become alike; precision and density say how many samples look real, recall and coverage how much of the real "
        "variety they reach. Figures of different networks, references, or sample counts cannot be compared."
    ]
    if any(metric.get("held_out") for metric in measured.values()):
        counts = sorted({str(m.get("held_out_count", "some number")) for m in measured.values() if m.get("held_out")})
        notes.append(
            "The held-out columns are a yardstick: real images that are not in the reference, measured in the same "
            f"way ({', '.join(counts)} of them). Figures near theirs are as good as this network can tell."
        )
    return Section(
        key="metrics",
        title="Quality of the samples",
        text=tuple(notes),
        tables=(
            Table(title="Figures", header=(*header, "better is"), rows=rows),
            Table(
                title="Feature networks",
                header=("name", "network", "distance", "dimensions", "weights", "preprocessing"),
                rows=networks,
            ),
            Table(
                title="References",
                header=("network", "source", "images", "px", "fit", "resize", "kept for neighbours", "fingerprint"),
                rows=references,
            ),
        ),
    )


def reconstruction(result: Result) -> Section | None:
    """How well images survive encoding and decoding."""
    found: Mapping[str, Any] = result.get("reconstruction") or {}
    if not found:
        return None
    known = {figure.key: figure for figure in RECONSTRUCTION_FIGURES}
    rows: list[tuple[Cell, ...]] = [
        (figure.title, found[key], _better(figure)) for key, figure in known.items() if key in found
    ]
    for name, value in (found.get("frechet") or {}).items():
        metric = result["metrics"].get(name)
        title = _distance(metric) if metric else f"Fréchet distance ({name})"
        rows.append((f"{title} of reconstructions", value, "lower"))
    of = " ".join(
        word for word in (str(found.get("count", "")), f"{found['split']} images" if found.get("split") else "images")
    )
    return Section(
        key="reconstruction",
        title="Reconstruction",
        text=(
            f"{of.strip()} were encoded, put on the sphere without noise, and decoded. It is the best that the decoder "
            "can do where it knows the image, and bounds what it can generate.",
        ),
        tables=(Table(header=("figure", "value", "better is"), rows=tuple(rows)),),
    )


def cost(result: Result) -> Section | None:
    """Parameters, operations, measured speed and memory."""
    found: Mapping[str, Any] = result.get("cost") or {}
    if not found:
        return None
    told = {
        "parameters": found.get("params"),
        "GFLOPs for one image": found.get("gflops"),
        "with attention counted": found.get("counted_gflops"),
    }
    columns = {title: values for title, values in told.items() if values}
    parts = list(dict.fromkeys(part for values in columns.values() for part in values))
    rows: list[tuple[Cell, ...]] = [(part, *(values.get(part) for values in columns.values())) for part in parts]
    if "parameters" in columns and len(parts) > 1:
        rows.append(("together", sum(columns["parameters"].values()), *([None] * (len(columns) - 1))))
    tables = [Table(title="Networks", header=("network", *columns), rows=tuple(rows))] if rows else []
    steps = [
        {**one, **{f"latency_{key}": value for key, value in (one.get("latency_ms") or {}).items()}}
        for one in found.get("by_steps") or []
    ]
    figures = [figure for figure in COST_FIGURES if any(one.get(figure.key) is not None for one in steps)]
    if steps:
        tables.append(
            Table(
                title="Generation",
                header=("steps", "batch", *(figure.title for figure in figures)),
                rows=tuple(
                    (one["steps"], one.get("batch"), *(one.get(figure.key) for figure in figures)) for one in steps
                ),
            )
        )
    text = [f"Measured on {found['device']}{_arithmetic(found)}."] if found.get("device") else []
    text.append("Speed is of whole batches; latency is that of one image made alone.")
    text += [_sentence_of(found["convention"])] if found.get("convention") else []
    return Section(key="cost", title="Cost", text=tuple(text), tables=tuple(tables))


def _sentence_of(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _arithmetic(found: Mapping[str, Any]) -> str:
    threads = found.get("threads")
    facts = [
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        found.get("dtype"),
        f"guidance {found['guidance']:g}" if found.get("guidance") is not None else None,
    ]
    told = ", ".join(fact for fact in facts if fact)
    return f" ({told})" if told else ""


def protocol(result: Result) -> Section:
    """The settings that the figures depend on."""
    about = {key: result[key] for key in ("spheregen", "created") if key in result}
    model = {key: value for key, value in result["model"].items() if key != "training"}
    tables = [
        _settings("Sampling and measuring", {**result["protocol"], **about}),
        _settings("Model", model),
    ]
    if result.get("data"):
        tables.append(_settings("Data", result["data"]))
    text = "Everything that the figures depend on. The same settings give the same samples: image i has its own seed."
    return Section(key="protocol", title="Protocol", text=(text,), tables=tuple(tables))


def recipe(result: Result) -> Section | None:
    """How the model was trained, as far as it says."""
    training = result["model"].get("training")
    if not training:
        return None
    return Section(
        key="recipe",
        title="Training recipe",
        text=("What the model's folder says of its training.",),
        tables=(_settings("", training),),
    )


def reference_facts(reference: Mapping[str, Any], data: Any) -> Mapping[str, Any]:
    """What is said of a reference: what it does not say of its images itself, the result's `data` may."""
    same = isinstance(data, Mapping) and reference.get("fingerprint") == data.get("fingerprint")
    return {**data, **reference} if same else reference


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested settings, with their dotted paths."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _settings(title: str, nested: Mapping[str, Any]) -> Table:
    rows = tuple((path, words(value)) for path, value in leaves(nested))
    return Table(title=title, header=("setting", "value"), rows=rows)


def words(value: Any) -> str:
    """A setting as text; of long lists and hashes the beginning."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _MOST_NAMES} more" if len(value) > _MOST_NAMES else ""
        return ", ".join(map(words, value[:_MOST_NAMES])) + more
    if isinstance(value, str) and _HASH.fullmatch(value):
        return f"{value[:_HASH_SHOWN]}…"
    return str(value) if not isinstance(value, Mapping) else "none"


def _sentence(model: Mapping[str, Any]) -> str:
    """The model in a sentence."""
    facts = [model.get("class"), f"fingerprint {model['fingerprint']}" if model.get("fingerprint") else None]
    if model.get("params"):
        facts.append(f"{model['params'] / 1e6:.3g} M parameters")
    if model.get("image_shape"):
        channels, height, width = model["image_shape"]
        facts.append(f"images of {width} x {height} pixels in {channels} channel{'' if channels == 1 else 's'}")
    if model.get("latent_shape"):
        tokens, channels = model["latent_shape"]
        facts.append(f"a latent sphere of {tokens} tokens x {channels} channels")
    facts.append(f"{model['num_classes']} classes" if model.get("num_classes") else "no classes")
    return f"Model: {model.get('name', 'unnamed')}; " + ", ".join(fact for fact in facts if fact) + "."


def _distance(metric: Mapping[str, Any]) -> str:
    return str(metric["features"].get("distance") or "Fréchet distance")


def _better(figure: Figure) -> Cell:
    return figure.better


def _network(name: str, features: Mapping[str, Any]) -> tuple[Cell, ...]:
    keys = ("title", "distance", "dim", "weights", "preprocessing")
    return (name, *(features.get(key) for key in keys))


def _reference(name: str, metric: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Cell, ...]:
    """A row of the table of references."""
    said = reference_facts(metric.get("reference") or {}, data)
    source = said.get("file") or "/".join(str(said[key]) for key in ("source", "split") if said.get(key)) or None
    keys = ("count", "image_size", "fit", "resize", "kept")
    return (name, source, *(said.get(key) for key in keys), words(said.get("fingerprint")))
