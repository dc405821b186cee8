"""What a generator is asked for: class labels, their embedding, label dropout, and the null condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spheregen.nn.tags import NO_DECAY, tag


class ClassEmbedding(nn.Module):
    """A table of num_classes + 1 rows; the last is the null class, which means "no condition".

    Labels (B,) int64 in [0, num_classes] to (B, W); `None` is the null class for all `batch` samples.
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
        return self.table(labels)  # type: ignore[no-any-return]


def drop_labels(labels: Tensor | None, dropped: Tensor | None, null: int) -> Tensor | None:
    """Labels with the null class where `dropped` (B,) is true: how a conditional model learns the null condition."""
    if labels is None or dropped is None:
        return labels
    return torch.where(dropped, torch.full_like(labels, null), labels)
