"""What a loss returns: its named terms and their weighted total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """Named terms of a loss, each a scalar before its weight, and the weighted total that is minimised."""

    total: Tensor
    terms: Mapping[str, Tensor]


def weighted_total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> LossTerms:
    """Sum terms by their weights."""
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return LossTerms(total=total, terms={name: value.detach() for name, value in terms.items()})
