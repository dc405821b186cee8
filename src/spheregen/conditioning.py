"""What a generator is asked for: class labels and mixtures of them, their embedding, label dropout, the null class.

Labels are (B,) int64 class ids, where id num_classes is the null class ("no condition"), or (B, num_classes + 1)
mixtures: weights of all classes, the null class last, that usually sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from spheregen.nn.tags import NO_DECAY, tag


@runtime_checkable
class Condition(Protocol):
    """Labels with everything computed that follows from them alone, for loops that call a network again and again.

    A generator makes it (`SphereGenerator.condition`) and takes it wherever it takes labels.
    """

    def rows(self, index: Tensor) -> Self:
        """The condition of these rows, (K,) int64, of the labels; repeated rows are welcome."""


@dataclass(frozen=True)
class Unprepared:
    """Labels alone, as the `Condition` of a generator that can compute nothing beforehand."""

    labels: Tensor | None

    def rows(self, index: Tensor) -> Unprepared:
        """The labels of these rows."""
        return self if self.labels is None else Unprepared(self.labels[index])


class ClassEmbedding(nn.Module):
    """A table of num_classes + 1 rows; the last is the null class, which means "no condition".

    Labels (B,) int64 in [0, num_classes] or mixtures (B, num_classes + 1) to (B, W); `None` is the null class for all
    `batch` samples.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.null = num_classes
        self.table = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)
        tag(self.table.parameters(), NO_DECAY)

    def forward(self, labels: Tensor | None, batch: int) -> Tensor:
        if labels is None:
            return self.table.weight[self.null].expand(batch, -1)
        if labels.is_floating_point():
            return labels.to(self.table.weight.dtype) @ self.table.weight
        return self.table(labels)  # type: ignore[no-any-return]


def drop_labels(labels: Tensor | None, dropped: Tensor | None, null: int) -> Tensor | None:
    """Labels with the null class where `dropped` (B,) is true: how a conditional model learns the null condition."""
    if labels is None or dropped is None:
        return labels
    return torch.where(dropped, torch.full_like(labels, null), labels)


def null_labels(labels: Tensor, num_classes: int) -> Tensor:
    """The null class for as many samples, in the form of `labels`: ids or mixtures."""
    if not labels.is_floating_point():
        return torch.full_like(labels, num_classes)
    null = torch.zeros_like(labels)
    null[:, num_classes] = 1
    return null


def mixture(labels: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) as mixtures (B, num_classes + 1) float32 of one class each; mixtures stay as they are."""
    if labels.is_floating_point():
        return labels
    return torch.nn.functional.one_hot(labels, num_classes + 1).float()
