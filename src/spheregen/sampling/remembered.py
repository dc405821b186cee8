"""A generator that makes the conditions of its classes once, for callers that ask for them batch after batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from spheregen.conditioning import Condition
from spheregen.models.protocol import SphereGenerator
from spheregen.sampling.view import GeneratorView


class RememberedConditions(GeneratorView):
    """A generator whose conditions of `classes`, and of the null class, are computed now and looked up later.

    Args:
        model: a conditional generator.
        classes: the ids that will be asked for; others are computed each time.
    """

    def __init__(self, model: SphereGenerator, classes: Iterable[int], device: torch.device) -> None:
        super().__init__(model)
        ids = sorted({*classes, model.num_classes})
        table = model.condition(torch.tensor(ids, device=device))
        assert table is not None  # the generator is conditional
        self._table = table
        self._unknown = len(ids)
        self._places = torch.full((model.num_classes + 1,), self._unknown, device=device)
        self._places[ids] = torch.arange(len(ids), device=device)

    def condition(self, labels: Tensor | None) -> Condition | None:
        if labels is None:
            return self._table.rows(self._places[-1:])
        if labels.is_floating_point():
            return self.model.condition(labels)
        places = self._places[labels]
        if bool((places == self._unknown).any()):
            return self.model.condition(labels)
        return self._table.rows(places)
