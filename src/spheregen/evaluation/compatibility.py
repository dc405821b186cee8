"""What must agree before figures of two evaluations may be compared, and what may differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spheregen.evaluation.report.sections import leaves, reference_facts, words

Result = Mapping[str, Any]
_UNSAID = "not said"


@dataclass(frozen=True)
class Doubt:
    """Why figures of these results are not like and like."""

    text: str
    """A sentence with the values, and what they do to the figures."""
    covers: tuple[str, ...]
    """Beginnings of the keys of the figures that it concerns."""
    forbids: bool = True
    """Whether calling one of these figures the better one would mislead."""

    def concerns(self, key: str) -> bool:
        """Whether it speaks of the figure `key`."""
        return any(key.startswith(beginning) for beginning in self.covers)


@dataclass(frozen=True)
class _Rule:
    key: str
    what: str
    why: str
    forbids: bool = True
    figures: tuple[str, ...] = ("",)
    """Beginnings of the keys of a network's figures that it concerns."""


_SAMPLES = (
    _Rule(
        "count",
        "counts of samples",
        "the Fréchet distance (FID) falls with the count, so figures of different counts are not comparable",
    ),
    _Rule(
        "labels",
        "classes of samples",
        "another mixture of classes is another set of images, whatever the model",
    ),
    _Rule(
        "quantise",
        "ways to 8 bits",
        "rounding down makes images darker by half a level, which changes every figure",
    ),
    _Rule(
        "dtype",
        "number types",
        "the same model gives slightly different images in another type",
        forbids=False,
    ),
)
_NETWORK = (
    _Rule("weights", "weights of the feature network", "other weights measure other distances"),
    _Rule("preprocessing", "preprocessing for the feature network", "another input gives other features"),
    _Rule("dim", "numbers of features", "other features measure other distances"),
)
_NEIGHBOUR_FIGURES = ("kid", "precision", "recall", "density", "coverage", "cmmd")
_REFERENCE = (
    _Rule("count", "numbers of reference images", "figures depend on the size of the reference"),
    _Rule("image_size", "sizes of the reference images", "images of another size look different to the network"),
    _Rule("channels", "channels of the reference images", "grey and colour images look different to the network"),
    _Rule("fit", "crops of the reference images", "another crop is another set of images"),
    _Rule(
        "resize", "filters that resized the reference images", "another filter shifts every figure, FID by whole points"
    ),
    _Rule("background", "backgrounds of transparent reference images", "it is a part of the images"),
    _Rule(
        "kept",
        "numbers of reference images to compare one by one",
        "precision, recall, density, coverage, KID and CMMD depend on their number",
        figures=_NEIGHBOUR_FIGURES,
    ),
)
_RECONSTRUCTION = (
    _Rule("count", "counts of reconstructed images", "other images are harder or easier to bring back"),
    _Rule("source", "data of the reconstructed images", "other images are harder or easier to bring back"),
    _Rule("split", "splits of the reconstructed images", "images of the training are easier to bring back"),
)
_MACHINE = (
    _Rule("device", "devices", "times are of another machine"),
    _Rule("dtype", "number types of the timing", "times are of other arithmetic"),
    _Rule("threads", "numbers of threads", "times are of another share of the machine"),
    _Rule("batch", "batches of the timing", "larger batches are faster by the image"),
)
_TIMES = ("cost/images_per_second", "cost/latency", "cost/peak_memory")
_OWN_RULES = {rule.key for rule in _SAMPLES}


def doubts(results: Sequence[Result], names: Sequence[str]) -> Iterator[Doubt]:
    """All that speaks against comparing figures of these results, each thing once.

    Args:
        results: two or more contents of `evaluation.json`.
        names: what to call each of them.
    """
    networks = list(dict.fromkeys(network for result in results for network in result["metrics"]))
    everything = tuple(f"{network}/" for network in networks)
    for rule in _SAMPLES:
        yield from _differing(rule, [result["protocol"].get(rule.key) for result in results], names, everything)
    sizes = [_size(result) for result in results]
    rule = _Rule("image_size", "sizes of samples", "images of another size look different to the network")
    yield from _differing(rule, sizes, names, (*everything, "reconstruction/"))
    for network in networks:
        places = [place for place, result in enumerate(results) if network in result["metrics"]]
        if len(places) > 1:
            yield from _network_doubts(network, [results[i] for i in places], [names[i] for i in places])
    for section, rules, covers in (
        ("reconstruction", _RECONSTRUCTION, ("reconstruction/",)),
        ("cost", _MACHINE, _TIMES),
    ):
        places = [place for place, result in enumerate(results) if isinstance(result.get(section), Mapping)]
        if len(places) > 1:
            for rule in rules:
                values = [_said(results[place][section], rule.key) for place in places]
                yield from _differing(rule, values, [names[place] for place in places], covers)


def settings_of(results: Sequence[Result]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What differs without being an obstacle: settings of sampling, the model, its training, versions."""
    for part in ("model", "protocol"):
        tables = [dict(leaves(result[part])) for result in results]
        for name in dict.fromkeys(key for table in tables for key in table):
            values = [table.get(name, _UNSAID) for table in tables]
            if any(value != values[0] for value in values) and not (part == "protocol" and name in _OWN_RULES):
                yield (name if part == "protocol" else f"model.{name}"), tuple(map(words, values))


def _network_doubts(network: str, results: Sequence[Result], names: Sequence[str]) -> Iterator[Doubt]:
    """What differs in a feature network and its reference."""
    entries = [result["metrics"][network] for result in results]
    covers = (f"{network}/",)
    for rule in _NETWORK:
        yield from _differing(rule, [entry["features"].get(rule.key) for entry in entries], names, covers, network)
    references = [
        reference_facts(entry.get("reference") or {}, result.get("data"))
        for result, entry in zip(results, entries, strict=True)
    ]
    prints = {str(reference.get("fingerprint") or "") for reference in references}
    if len(prints) > 1 or prints == {""}:  # the same images may go by several names
        rule = _Rule("data", "references", "a distance to other images is another figure")
        yield from _differing(rule, [_identity(reference) for reference in references], names, covers, network)
    for rule in _REFERENCE:
        beginnings = tuple(f"{network}/{figure}" for figure in rule.figures)
        said = [
            (one[rule.key], name) for one, name in zip(references, names, strict=True) if one.get(rule.key) is not None
        ]
        yield from _differing(rule, [value for value, _ in said], [name for _, name in said], beginnings, network)


def _differing(
    rule: _Rule, values: Sequence[Any], names: Sequence[str], covers: tuple[str, ...], network: str = ""
) -> Iterator[Doubt]:
    """A doubt if the values are not all the same."""
    if all(value == values[0] for value in values):
        return
    texts = [_UNSAID if value is None else words(value) for value in values]
    told = ", ".join(f"{text} ({name})" for text, name in zip(texts, names, strict=True))
    where = f"{network}: " if network else ""
    yield Doubt(f"{where}different {rule.what}: {told}; {rule.why}", covers, rule.forbids)


def _said(section: Mapping[str, Any], key: str) -> Any:
    """A setting of a section, or of its first row."""
    rows = section.get("by_steps")
    row = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) else {}
    return section.get(key, row.get(key))


def _size(result: Result) -> str | None:
    """Channels and pixels of the samples."""
    shape = result["model"].get("image_shape")
    return " x ".join(map(str, shape)) if isinstance(shape, list) and shape else None


def _identity(reference: Mapping[str, Any]) -> str | None:
    """Which images a reference is of: its fingerprint, else the file or name that it goes by."""
    fingerprint = reference.get("fingerprint")
    if fingerprint:
        place = "/".join(str(reference[key]) for key in ("source", "split") if reference.get(key))
        return f"{place} {words(fingerprint)}".strip()
    known = [str(reference[key]) for key in ("file", "source", "split") if reference.get(key)]
    return "/".join(known) or None
