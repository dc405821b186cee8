"""Fine-tuning: the weights of a trained model in another one of its kind that may differ from it.

One function serves every member of the family: parameters and statistics of the same name and shape are copied, class
tables are matched by class name, and everything else starts as it was built. Position tables are no parameters: they
are computed for the target's own image size.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, ModelFileError
from spheregen.folders.card import ModelInfo
from spheregen.nn.block import Block
from spheregen.nn.mixer import MixerBlock

Fate = Literal["kept", "adapted", "fresh", "dropped"]
CLASS_TABLE = "labels.table.weight"
"""Ends the name of a table of class embeddings (K + 1, W), whose null class is the last row."""
BY_NUMBER = "classes are matched by number: names are not known on both sides"
_SHOWN = 4  # parts that a line names


@dataclass(frozen=True)
class Part:
    """One parameter and its fate."""

    name: str
    """Its name in the target; of a dropped one, in the source."""
    parameters: int
    """Numbers in it."""
    fate: Fate
    """`kept`: copied. `adapted`: made from the source's. `fresh`: nothing of the source is in it. `dropped`: a
    parameter of the source that has no place in the target."""
    reason: str = ""
    """Why it is not kept, or how it was adapted; empty for a kept one."""


@dataclass(frozen=True)
class Transfer:
    """The parameters that a model took over from another."""

    parts: tuple[Part, ...]
    """Those of the target that learn, in their order, then the dropped ones."""
    notes: tuple[str, ...] = ()
    """Differences that no weight shows, a line each."""

    def names(self, fate: Fate) -> tuple[str, ...]:
        """Return the names of the parameters of this fate."""
        return tuple(part.name for part in self.parts if part.fate == fate)

    def count(self, *fates: Fate) -> int:
        """Return how many numbers have one of these fates."""
        return sum(part.parameters for part in self.parts if part.fate in fates)

    def summary(self) -> tuple[str, ...]:
        """Return a few lines for people."""
        total, tensors = self.count("kept", "adapted", "fresh"), len(self.parts) - len(self.names("dropped"))
        kept = f"kept {_readable(self.count('kept'))} of {_readable(total)} parameters"
        fates: tuple[Fate, ...] = ("adapted", "fresh", "dropped")
        lines = [f"{fate} {_readable(self.count(fate))}: {self._describe(fate)}" for fate in fates if self.names(fate)]
        return (f"{kept} ({len(self.names('kept'))} of {tensors} tensors)", *lines, *self.notes)

    def _describe(self, fate: Fate) -> str:
        """Name the parts by reason: `encoder.trunk.blocks, decoder.head (new); ...`."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            if part.fate == fate:
                names = found.setdefault(part.reason, [])
                place = ".".join(re.sub(r"\.\d+", "", part.name).split(".")[:3]).removesuffix(".weight")
                if place not in names:
                    names.append(place)
        return "; ".join(
            ", ".join([*names[:_SHOWN], *([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])])
            + f" ({reason})"
            for reason, names in found.items()
        )


@torch.no_grad()
def transfer(
    target: nn.Module,
    source: nn.Module,
    *,
    target_classes: Sequence[str] = (),
    source_classes: Sequence[str] = (),
    learned: nn.Module | None = None,
) -> Transfer:
    """Put the weights of `source` into `target`, in place and on the CPU; the same inputs give the same weights.

    - Parameters and statistics of the same name and shape are copied.
    - Class tables: rows by class name, by number where a side has no names, null to null. A new class starts at the
      null class plus the small random row that the target was built with.
    - A transformer block that the source lacks starts as the identity. A block whose modulation alone is new starts
      with gates of 1, so that it computes what it did; new mixing of tokens or channels starts at a gain of 0.
    - Everything else that does not fit starts as the target was built.

    Args:
        target: freshly built, in float32, with its architecture as `config`.
        source: of the same class, on the CPU, in any type; it is not changed.
        target_classes, source_classes: names of the classes, K of each; empty where there are none.
        learned: the part of the target that learns; the rest is frozen and left alone. None: all of it.

    Raises:
        ConfigError: not one transformer block fits.
        ModelFileError: a weight of the source is not finite.
    """
    check_fits(target.config, source.config)
    theirs = {name: tensor.detach() for name, tensor in (*source.named_parameters(), *source.named_buffers())}
    for name, tensor in theirs.items():
        if not bool(tensor.isfinite().all()):
            raise ModelFileError(f"the weight {name} of the model is not finite; the model is broken, take another one")
    learner = learned or target
    own = {id(tensor) for tensor in (*learner.parameters(), *learner.buffers())}
    for name, buffer in target.named_buffers():
        if id(buffer) in own and name in theirs and theirs[name].shape == buffer.shape:
            buffer.copy_(theirs[name])
    frozen = {name for name, parameter in target.named_parameters() if id(parameter) not in own}
    parts: list[Part] = []
    notes: list[str] = []
    for name, parameter in target.named_parameters():
        if name in frozen:
            continue
        value, reason = (theirs[name].float(), "") if name in theirs else (None, "new")
        if value is not None and name.endswith(CLASS_TABLE) and value.shape[1:] == parameter.shape[1:]:
            rows, how = _class_rows(target_classes, source_classes, len(parameter) - 1, len(value) - 1)
            value, reason = _class_table(value, parameter, rows, how)
            notes = [BY_NUMBER] if how == "number" else []
        if value is not None and value.shape == parameter.shape:
            parameter.copy_(value)
            parts.append(Part(name, parameter.numel(), "adapted" if reason else "kept", reason))
        else:
            reason = reason if value is None else f"{_shape(value)} -> {_shape(parameter)}"
            parts.append(Part(name, parameter.numel(), "fresh", reason))
    ours = {part.name for part in parts} | frozen
    parts += [
        Part(name, parameter.numel(), "dropped", "not in the recipe")
        for name, parameter in source.named_parameters()
        if name not in ours
    ]
    closed = _start_without_effect(target, {part.name for part in parts if part.fate == "fresh"})
    parts = [
        dataclasses.replace(part, fate="adapted", reason="0, for what it scales is new")
        if part.name in closed and part.fate == "kept"
        else part
        for part in parts
    ]
    return Transfer(tuple(parts), (*notes, *_changed_settings(target.config, source.config)))


def check_fits(target: Any, source: Any) -> None:
    """Refuse a model of which not one transformer block fits, by its architecture alone.

    Args:
        target, source: architectures of one class, with `transformers`.

    Raises:
        ConfigError: no transformer has the width of its counterpart.
    """
    theirs, ours = ([size.width for size in getattr(config, "transformers", ())] for config in (source, target))
    if ours and all(a != b for a, b in zip(theirs, ours, strict=True)):
        raise ConfigError(
            f"nothing of the model fits: its transformers are {' and '.join(map(str, theirs))} wide, the recipe's "
            f"{' and '.join(map(str, ours))}; give the recipe the model's sizes, or train without --init"
        )


def inherited_provenance(name: str, base: ModelInfo) -> dict[str, str]:
    """Return the `ModelInfo.provenance` of a model that is fine-tuned from the one called `name`.

    Source and licence are the base's; `base_model` tells its recipe and its own base, if they are known.
    """
    known = []
    if recipe := base.training.get("recipe"):
        known.append(f"recipe {recipe}")
    if older := base.provenance.get("base_model"):
        known.append(f"fine-tuned from {older}")
    inherited = {key: str(base.provenance[key]) for key in ("source", "license") if base.provenance.get(key)}
    return {**inherited, "base_model": f"{name} ({', '.join(known)})" if known else name}


def _class_rows(ours: Sequence[str], theirs: Sequence[str], new: int, old: int) -> tuple[list[int | None], str]:
    """Return the source's class for each of the target's `new` ones, None where there is none, and `name` or `number`.

    They are matched by name where the names of all are known.
    """
    if (len(ours), len(theirs)) != (new, old):
        return [place if place < old else None for place in range(new)], "number"
    places = {name: place for place, name in reversed(list(enumerate(theirs)))}
    return [places.get(name) for name in ours], "name"


def _class_table(table: Tensor, fresh: Tensor, rows: Sequence[int | None], how: str) -> tuple[Tensor, str]:
    """Return a class table (K' + 1, W) in the order of the target's classes, and how it was adapted, if it was.

    New classes are the null class and what the target was built with, `fresh` (K + 1, W).
    """
    left = len(table) - 1
    if rows == list(range(left)):
        return table, ""
    known = {place: row for place, row in enumerate(rows) if row is not None}
    reason = f"{len(known)} of {len(rows)} classes by {how}, {len(rows) - len(known)} new"
    if left := left - len(set(known.values())):
        reason += f", {left} of the model's left out"
    new = table[-1] + fresh
    new[list(known)] = table[list(known.values())]
    new[-1] = table[-1]
    return new, reason


def _start_without_effect(target: nn.Module, fresh: set[str]) -> set[str]:
    """Let fresh parts of residual paths leave alone what the parts around them, which are kept, have learned.

    Returns:
        The gains of mixers that were set to 0.
    """
    closed: set[str] = set()
    for prefix, module in target.named_modules():
        new = {name: f"{prefix}.{name}" in fresh for name, _ in module.named_parameters()}
        if isinstance(module, Block) and any(new.values()):
            if all(new.values()) and module.modulation is None:
                for layer in (module.attention.out, module.mlp.out):
                    for parameter in layer.parameters():
                        parameter.zero_()
            elif module.modulation is not None and not all(new.values()) and new["modulation.linear.bias"]:
                # shift, scale and gate of the attention, then of the MLP
                module.modulation.linear.bias.unflatten(0, (6, -1))[[2, 5]] = 1.0
        elif isinstance(module, MixerBlock):
            for path, gain in (("token", module.token_gain), ("channel", module.channel_gain)):
                if any(is_new for name, is_new in new.items() if name.startswith(f"{path}_mlp")):
                    gain.zero_()
                    closed.add(f"{prefix}.{path}_gain")
    return closed


def _changed_settings(ours: Any, theirs: Any) -> tuple[str, ...]:
    """Tell in a line which plain settings of two architectures differ; nothing where none does."""
    changes = [
        f"{name} {before} -> {now}"
        for name, now in vars(ours).items()
        if isinstance(now, str | int | float) and (before := getattr(theirs, name, now)) != now
    ]
    return (f"other settings, which the weights that are kept must learn: {', '.join(changes)}",) if changes else ()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _readable(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)
