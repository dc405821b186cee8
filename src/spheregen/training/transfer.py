"""Fine-tuning: the weights of a trained model in another one of its kind that may differ from it.

One function serves every member of the family: parameters and statistics of the same name and shape are copied, class
tables are matched by class name, and everything else starts as it was built. Position tables are no parameters: they
are computed for the target's own image size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError
from spheregen.folders.card import ModelInfo
from spheregen.nn.block import Block
from spheregen.nn.mixer import MixerBlock
from spheregen.tensors import check_finite

Fate = Literal["kept", "adapted", "fresh", "dropped"]
"""Copied; made from the source's; as the target was built; of the source, without a place in the target."""
CLASS_TABLE = "labels.table.weight"
"""Ends the name of a table of class embeddings (K + 1, W), whose null class is the last row."""
_SHOWN = 4  # parts that a line names


@dataclass(frozen=True)
class Part:
    """One parameter and its fate."""

    name: str
    """Its name in the target; of a dropped one, in the source."""
    parameters: int
    """Numbers in it."""
    fate: Fate
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

    def summary(self) -> tuple[str, ...]:
        """Return a line for each fate, which names some of its parts and why, and the notes."""
        lines = []
        for fate in ("kept", "adapted", "fresh", "dropped"):
            parts = [part for part in self.parts if part.fate == fate]
            line = f"{fate} {sum(part.parameters for part in parts):,} parameters"
            if fate == "kept":
                lines.append(f"{line} ({len(parts)} of {len(self.parts) - len(self.names('dropped'))} tensors)")
            elif parts:
                places = [".".join(re.sub(r"\.\d+", "", part.name).split(".")[:3]) for part in parts]
                shown = list(dict.fromkeys(place.removesuffix(".weight") for place in places))
                more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
                reasons = ", ".join(dict.fromkeys(part.reason for part in parts))
                lines.append(f"{line}: {', '.join(shown[:_SHOWN])}{more} ({reasons})")
        return (*lines, *self.notes)


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
    old, new = ([size.width for size in getattr(each.config, "transformers", ())] for each in (source, target))
    if new and all(a != b for a, b in zip(old, new, strict=True)):
        raise ConfigError(
            f"nothing of the model fits: its transformers are {' and '.join(map(str, old))} wide, the recipe's "
            f"{' and '.join(map(str, new))}; give the recipe the model's sizes, or train without --init"
        )
    theirs = {name: tensor.detach() for name, tensor in (*source.named_parameters(), *source.named_buffers())}
    check_finite("the model", theirs)
    learner = learned or target
    own = {id(tensor) for tensor in (*learner.parameters(), *learner.buffers())}
    for name, buffer in target.named_buffers():
        if id(buffer) in own and name in theirs and theirs[name].shape == buffer.shape:
            buffer.copy_(theirs[name])
    found: dict[str, tuple[Fate, str]] = {}
    ours = dict(target.named_parameters())
    learning = {name: parameter for name, parameter in ours.items() if id(parameter) in own}
    notes: list[str] = []
    for name, parameter in learning.items():
        value, reason = (theirs[name].float(), "") if name in theirs else (None, "new")
        if value is not None and _is_class_table(name, target) and value.shape[1:] == parameter.shape[1:]:
            named = (len(target_classes), len(source_classes)) == (len(parameter) - 1, len(value) - 1)
            value, reason = _class_table(value, parameter, *((target_classes, source_classes) if named else ()))
            notes = [] if named else ["classes are matched by number: names are not known on both sides"]
        if value is not None and value.shape == parameter.shape:
            parameter.copy_(value)
            found[name] = ("adapted" if reason else "kept", reason)
        else:
            found[name] = ("fresh", reason if value is None else f"{_shape(value)} -> {_shape(parameter)}")
    for name in _start_without_effect(target, {name for name, (fate, _) in found.items() if fate == "fresh"}):
        if found[name][0] == "kept":
            found[name] = ("adapted", "0, for what it scales is new")
    parts = [Part(name, learning[name].numel(), *fate) for name, fate in found.items()]
    parts += [
        Part(name, parameter.numel(), "dropped", "not in the recipe")
        for name, parameter in source.named_parameters()
        if name not in ours
    ]
    changes = [
        f"{name} {before} -> {now}"
        for name, now in vars(target.config).items()
        if isinstance(now, str | int | float) and (before := getattr(source.config, name, now)) != now
    ]
    if changes:
        notes.append(f"other settings, which the weights that are kept must learn: {', '.join(changes)}")
    return Transfer(tuple(parts), tuple(notes))


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


def _is_class_table(name: str, model: nn.Module) -> bool:
    """Return whether a weight is a table of classes; that of a model that follows texts is a matrix like others."""
    return name.endswith(CLASS_TABLE) and not getattr(model, "text_width", 0)


def _class_table(
    table: Tensor, fresh: Tensor, ours: Sequence[Any] = (), theirs: Sequence[Any] = ()
) -> tuple[Tensor, str]:
    """Return a class table (K' + 1, W) in the order of the target's classes, and how it was adapted, if it was.

    Classes are matched by name, or by number where no names are given. New ones are the null class and what the target
    was built with, `fresh` (K + 1, W).
    """
    how = "name" if ours else "number"
    ours, theirs = ours or range(len(fresh) - 1), theirs or range(len(table) - 1)
    if list(ours) == list(theirs):
        return table, ""
    places = {name: place for place, name in reversed(list(enumerate(theirs)))}
    known = {place: places[name] for place, name in enumerate(ours) if name in places}
    new = table[-1] + fresh
    new[list(known)] = table[list(known.values())]
    new[-1] = table[-1]
    left = len(theirs) - len(set(known.values()))
    return new, f"{len(known)} of {len(ours)} classes by {how}, {len(ours) - len(known)} new, {left} left out"


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


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
