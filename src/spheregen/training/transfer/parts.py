"""What becomes of a trained model's weights when another model starts from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spheregen.errors import ModelFileError
from spheregen.model_folder import ModelInfo

Fate = Literal["kept", "adapted", "fresh", "dropped"]
_WORDS = {  # what people call the parts of a network
    "trunk.labels": "class table",
    "trunk.blocks": "transformer blocks",
    "trunk.context": "in-context tokens",
    "patches": "patch embedding",
    "output": "output norm",
    "project": "output linear",
    "embed": "input linear",
    "mixer": "mixer",
    "head": "pixel head",
}


@dataclass(frozen=True)
class Part:
    """What became of one parameter."""

    name: str
    """Its name in the target; of what is dropped, in the source."""
    parameters: int
    """How many numbers it holds."""
    fate: Fate
    """`kept`: copied. `adapted`: made from the source's. `fresh`: nothing of the source is in it. `dropped`: a
    parameter of the source that has no place in the target."""
    reason: str = ""
    """Why it is not kept, or how it was adapted; empty for what is kept."""


@dataclass(frozen=True)
class Transfer:
    """What a model took over from another. Kept, adapted and fresh together are all parameters of the target."""

    parts: tuple[Part, ...]
    """The target's parameters in their order, then what was dropped. Fixed tables are no parameters."""
    notes: tuple[str, ...] = ()
    """What computes differently although its weights are kept."""

    def names(self, fate: Fate) -> tuple[str, ...]:
        """The parameters that met this fate."""
        return tuple(part.name for part in self.parts if part.fate == fate)

    def count(self, *fates: Fate) -> int:
        """How many numbers met one of these fates."""
        return sum(part.parameters for part in self.parts if part.fate in fates)

    def summary(self) -> tuple[str, ...]:
        """A few lines for people."""
        total, tensors = self.count("kept", "adapted", "fresh"), len(self.parts) - len(self.names("dropped"))
        kept = len(self.names("kept"))
        lines = [f"kept {_readable(self.count('kept'))} of {_readable(total)} parameters ({kept} of {tensors} tensors)"]
        fates: tuple[Fate, ...] = ("adapted", "fresh", "dropped")
        lines += [f"{fate} {_readable(self.count(fate))}: {self._describe(fate)}" for fate in fates if self.names(fate)]
        return (*lines, *self.notes)

    def _describe(self, fate: Fate) -> str:
        """Which parts, by reason: `encoder and decoder mixer (16 -> 64 tokens)`."""
        found: dict[str, dict[str, list[str]]] = {}
        for part in self.parts:
            if part.fate == fate:
                network, word = _place(part.name)
                networks = found.setdefault(part.reason, {}).setdefault(word, [])
                if network not in networks:
                    networks.append(network)
        return "; ".join(
            ", ".join(f"{' and '.join(networks)} {word}" for word, networks in words.items()) + f" ({reason})"
            for reason, words in found.items()
        )


Adapt = Callable[[str, Tensor, Tensor], tuple[Tensor, str]]
"""Name, the source's value and the target's fresh one, to the value to keep and how it was adapted, empty if not."""


@torch.no_grad()
def keep_matching(
    target: nn.Module, source: nn.Module, adapt: Adapt = lambda name, value, fresh: (value, "")
) -> tuple[Part, ...]:
    """Put the parameters of `source` into `target` where name and shape are the same, in place; the others stay.

    Raises:
        ModelFileError: a weight of the source is not finite.
    """
    theirs = {name: parameter.detach().float() for name, parameter in source.named_parameters()}
    for name, value in theirs.items():
        if not bool(value.isfinite().all()):
            raise ModelFileError(f"the weight {name} of the model is not finite; the model is broken, take another one")
    parts: list[Part] = []
    for name, ours in target.named_parameters():
        if name not in theirs:
            parts.append(Part(name, ours.numel(), "fresh", "new"))
            continue
        value, how = adapt(name, theirs.pop(name), ours.detach())
        if value.shape != ours.shape:
            reason = f"{tuple(value.shape)} -> {tuple(ours.shape)}"
            parts.append(Part(name, ours.numel(), "fresh", reason))
            continue
        ours.copy_(value)
        parts.append(Part(name, ours.numel(), "adapted" if how else "kept", how))
    return (*parts, *(Part(name, value.numel(), "dropped", "no place for it") for name, value in theirs.items()))


def inherited_provenance(name: str, base: ModelInfo) -> dict[str, str]:
    """The `ModelInfo.provenance` of a model that is fine-tuned from the one called `name`.

    Source and licence are the base's; `base_model` says what is known of it.
    """
    known = []
    if recipe := base.training.get("recipe"):
        known.append(f"recipe {recipe}")
    if older := base.provenance.get("base_model"):
        known.append(f"fine-tuned from {older}")
    inherited = {key: str(base.provenance[key]) for key in ("source", "license") if base.provenance.get(key)}
    return {**inherited, "base_model": f"{name} ({', '.join(known)})" if known else name}


def _readable(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)


def _place(name: str) -> tuple[str, str]:
    """Network and part of a parameter, in words."""
    network, _, rest = name.partition(".")
    for prefix, word in _WORDS.items():
        if rest.startswith(prefix):
            return network, word
    return network, rest.partition(".")[0]


@dataclass(frozen=True)
class ClassTable:
    """A table of class embeddings for other classes, whose null class is the last row."""

    table: Tensor
    """(K + 1, W)."""
    how: str
    """How it was adapted; empty where it is the old one."""
    by_name: bool
    """Whether classes were matched by their names, or by their numbers where a side has none."""


def fit_class_table(
    table: Tensor, fresh: Tensor, target_names: Sequence[str], source_names: Sequence[str]
) -> ClassTable:
    """A class table (K' + 1, W) for K other classes: known ones keep their rows, new ones start at the null class plus
    their row of `fresh` (K + 1, W)."""
    ours, theirs = len(fresh) - 1, len(table) - 1
    by_name = len(target_names) == ours and len(source_names) == theirs
    if by_name:
        places = {name: place for place, name in reversed(list(enumerate(source_names)))}
        rows = [places.get(name) for name in target_names]
    else:
        rows = [place if place < theirs else None for place in range(ours)]
    if rows == list(range(theirs)):
        return ClassTable(table, "", by_name)
    known = {place: row for place, row in enumerate(rows) if row is not None}
    how = f"{len(known)} of {ours} classes by {'name' if by_name else 'number'}, {ours - len(known)} new"
    if left := theirs - len(set(known.values())):
        how += f", {left} of the model's left out"
    new = table[-1] + fresh  # rows of N(0, 0.02^2)
    for place, row in known.items():
        new[place] = table[row]
    new[-1] = table[-1]
    return ClassTable(new, how, by_name)


BY_NUMBER = "classes are matched by number: names are not known on both sides"
_TABLE = "trunk.labels.table.weight"


def matching_classes(target_names: Sequence[str], source_names: Sequence[str]) -> tuple[Adapt, list[str]]:
    """An `Adapt` for networks with one trunk, which fits the class table and keeps the rest; and the notes it makes."""
    notes: list[str] = []

    def adapt(name: str, value: Tensor, fresh: Tensor) -> tuple[Tensor, str]:
        if name != _TABLE or value.shape[1] != fresh.shape[1]:
            return value, ""
        found = fit_class_table(value, fresh, target_names, source_names)
        if not found.by_name:
            notes.append(BY_NUMBER)
        return found.table, found.how

    return adapt, notes
