"""The conditions of a generator, as vectors: class labels, mixtures of them, texts, or nothing ("the null class").

People give labels: (B,) int64 class ids, where id num_classes is the null class, or (B, num_classes + 1) mixtures,
weights of all classes, the null class last, that usually sum to 1. Those of a model of texts are (B, D + 1): the D
numbers of a text's vector, of length 1, and the weight of the null, see `text_labels`. So the table of embeddings that
a network has of classes is, of texts, a learned projection. Where blocks attend to a text's tokens too, its vector and
T tokens lie one behind the other in the D numbers, and its embedding is 1 + T rows. A model makes a `Condition` of
labels once (`SphereGenerator.condition`); what takes labels takes a condition as well, and nobody asks what it was made
of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError, Settings

Modulated = Tensor | tuple[Tensor, ...]
"""An embedding (B or 1, W), or what a layer makes of it: vectors (B or 1, 1, W) that shift, scale and gate."""


class ConditionConfig(Settings):
    """A configuration, a frozen dataclass, of a model whose condition is a class or a text."""

    num_classes = 0
    """Classes K; 0: none."""
    text_width = 0
    """Numbers D of a text's vector and tokens, instead of classes; 0: no texts."""
    text_tokens = 0
    """Tokens T of a text, beside its vector and of as many numbers, which blocks attend to."""

    @property
    def label_width(self) -> int:
        """Numbers of a label beside the weight of the null class: K, or D; 0 of an unconditional model."""
        return self.num_classes or self.text_width

    def check_condition(self) -> None:
        """Refuse an impossible condition.

        Raises:
            ConfigError: a negative number, or classes and texts at once.
        """
        for name in ("num_classes", "text_width", "text_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is not negative: {getattr(self, name)}")
        if self.num_classes and self.text_width:
            raise ConfigError("a model follows classes or texts: set num_classes=0 or text_width=0")
        if self.text_tokens and (not self.text_width or self.text_width % (1 + self.text_tokens)):
            raise ConfigError(
                f"text_width is (1 + text_tokens) times the numbers of a vector, a multiple of {1 + self.text_tokens}, "
                f"not {self.text_width}"
            )


class NetworkCondition:
    """The condition of one network for B samples, or of any number of them.

    Args:
        rows: (R, W) embeddings, the null class last; (R, 1 + T, W) with tokens of texts.
        index: (B,) the row of each sample; None is the null class for any number.
    """

    def __init__(self, rows: Tensor, index: Tensor | None) -> None:
        found = rows[-1:] if index is None else rows_at(rows, index)
        self.embedding = found if found.ndim == 2 else found[:, 0]
        """(B, W), or (1, W) for any number of samples."""
        self.tokens = None if found.ndim == 2 else found[:, 1:]
        """(B or 1, T, W) of texts, where blocks attend to them."""
        self._rows, self._index = rows, index
        self._made: dict[Any, tuple[Tensor, ...]] = {}

    def plus(self, embedding: Tensor) -> NetworkCondition:
        """Return the condition with another embedding added: (1, W) the same for all samples, or (B, W)."""
        rows, index = self._rows, self._index
        if len(embedding) > 1:
            rows = rows[-1:] if index is None else rows_at(rows, index)
            index = torch.arange(len(embedding), device=embedding.device)
        if rows.ndim == 2:
            return NetworkCondition(rows + embedding, index)
        first, tokens = (rows[:, :1] + embedding[:, None]), rows[:, 1:]
        return NetworkCondition(torch.cat([first, tokens.expand(len(first), -1, -1)], dim=1), index)

    def of(self, layer: Any) -> Modulated:
        """Return the embedding; without gradients what the layer made of it, which is kept from step to step.

        Args:
            layer: such as a transformer block; `vectors(embedding)` returns what it makes of embeddings (B, W).
        """
        if torch.is_grad_enabled():
            return self.embedding
        if layer not in self._made:
            if self._index is not None and len(self._rows) < len(self._index):  # classes repeat: compute each once
                rows = self._rows if self._rows.ndim == 2 else self._rows[:, 0]
                self._made[layer] = tuple(vector[self._index] for vector in layer.vectors(rows))
            else:
                self._made[layer] = layer.vectors(self.embedding)
        return self._made[layer]


@dataclass(frozen=True)
class Condition:
    """The condition of a model's networks for B samples, or for any number of them."""

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """By the names of networks, (R, W) embeddings, or (R, 1 + T, W) with tokens of texts, the null class last; an
    unconditional network has none."""
    index: Tensor | None = None
    """(B,) int64, the row of each sample; None where nothing was asked for: the null class for any number."""
    _networks: dict[str, NetworkCondition] = field(default_factory=dict, repr=False, compare=False)

    def of(self, network: str) -> NetworkCondition | None:
        """Return what a network is told; None if it is unconditional."""
        if network not in self._networks and network in self.rows:
            self._networks[network] = NetworkCondition(self.rows[network], self.index)
        return self._networks.get(network)

    def __getitem__(self, part: slice | Tensor) -> Condition:
        """Return the condition of these samples, by a slice or indices (K,)."""
        return self if self.index is None else Condition(self.rows, self.index[part])

    def dropped(self, where: Tensor) -> Condition:
        """Return the same with the null class where (B,) is true: how a model learns the null class."""
        if self.index is None:
            return self
        return Condition(self.rows, torch.where(where.to(self.index.device), self._null, self.index))

    def twice(self) -> Condition:
        """Return the condition of 2 B samples, the second half as the first."""
        return self if self.index is None else Condition(self.rows, torch.cat([self.index, self.index]))

    def against(self, negative: Condition) -> Condition:
        """Return the same with another null: the one that guidance pulls away from.

        Args:
            negative: of one sample.
        """
        if negative.index is None:
            return self
        rows = {name: torch.cat([of[:-1], negative.rows[name][negative.index]]) for name, of in self.rows.items()}
        return Condition(rows, self.index)

    def with_null(self) -> Condition:
        """Return the condition of 2 B samples, the second half under the null class: what guidance needs."""
        if self.index is None:
            return self
        return Condition(self.rows, torch.cat([self.index, torch.full_like(self.index, self._null)]))

    def check(self, samples: int) -> Condition:
        """Return the same.

        Raises:
            ConfigError: it is of another number of samples.
        """
        if self.index is not None and len(self.index) != samples:
            raise ConfigError(f"{len(self.index)} labels for {samples} samples; give one for each")
        return self

    @property
    def _null(self) -> int:
        return min(len(rows) for rows in self.rows.values()) - 1


Labels = Tensor | Condition | None
"""Class ids (B,), mixtures (B, num_classes + 1), a condition made of them, or None for the null class."""
EmbedLabels = Callable[[Tensor | None], Tensor | None]
"""A network's embeddings (R, W) for labels, as in `embeddings_for`; None of an unconditional network."""


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Return the rows (B, ...) of embeddings (R, ...) at an index (B,)."""
    return functional.embedding(index, rows) if rows.ndim == 2 else rows[index]


def embeddings_for(labels: Tensor | None, table: Tensor) -> Tensor:
    """Return the embeddings (R, W) that labels need: all of a table (K + 1, W) for ids, else the mixtures and the null.

    A copy, because the weights of a sharded network are freed when it has been called.
    """
    if labels is None or not labels.is_floating_point():
        return table.clone()
    return torch.cat([labels.to(table.dtype) @ table, table[-1:]])


def make_condition(labels: Labels, label_width: int, networks: Mapping[str, EmbedLabels]) -> Condition:
    """Return the condition that labels are for these networks; a condition stays as it is.

    Args:
        labels: class ids (B,), mixtures or texts (B, label_width + 1), or None for the null class.
        label_width: classes K, or numbers D of a text; 0 for an unconditional model.
        networks: by name, what embeds labels for each.

    Raises:
        ConfigError: labels of another shape, or for an unconditional model.
    """
    if isinstance(labels, Condition):
        if label_width and not labels.rows.keys() & networks.keys():
            raise ConfigError(
                f"a condition of {', '.join(labels.rows) or 'nothing'} is none of this model's: it has "
                f"{', '.join(networks)}; take model.condition(labels)"
            )
        return labels
    index = labels
    if labels is not None:
        if not label_width:
            raise ConfigError("this model is unconditional and takes no labels; leave them out")
        mixed = labels.is_floating_point()
        if not labels.ndim or tuple(labels.shape[1:]) != ((label_width + 1,) if mixed else ()):
            shape = tuple(labels.shape)
            raise ConfigError(f"labels have shape {shape}; give class ids (B,) or mixtures (B, {label_width + 1})")
        index = torch.arange(len(labels), device=labels.device) if mixed else labels
    embedded = {name: embed(labels) for name, embed in networks.items()} if label_width else {}
    return Condition({name: rows for name, rows in embedded.items() if rows is not None}, index)


def text_labels(vectors: Tensor, told: Tensor | None = None) -> Tensor:
    """Return vectors of texts (B, D) as labels (B, D + 1) float32.

    Args:
        told: (B,) bool: false where there is no text, which is the null.
    """
    null = torch.zeros(len(vectors), 1) if told is None else (~told[:, None]).float()
    return torch.cat([vectors.float() * (1 - null), null], dim=1)


def mixture(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels (B,) as mixtures (B, num_classes + 1) float32 of one class each; mixtures stay as they are."""
    return labels if labels.is_floating_point() else functional.one_hot(labels, num_classes + 1).float()
