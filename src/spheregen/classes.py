"""Classes by name: from what people write to the ids that models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
from torch import Tensor

from spheregen.errors import ConfigError, did_you_mean

Labels = int | str | Sequence[int | str] | Tensor | None
"""Class ids or names: one for all pictures, or one for each."""


@dataclass(frozen=True)
class Classes:
    """The classes of a model."""

    count: int
    """0 for an unconditional model."""
    names: tuple[str, ...] = ()
    """Their names; may be empty."""

    def id(self, label: int | str) -> int:
        """A class id from an id, its digits or a class name.

        Raises:
            ConfigError: the model is unconditional, or has no such class.
        """
        if not self.count:
            raise ConfigError("this model is unconditional and has no classes; leave the label out")
        if isinstance(label, str):
            if label in self.names:
                return self.names.index(label)
            if label.isdecimal():
                return self.id(int(label))
            hint = did_you_mean(label, self.names)
            raise ConfigError(f"unknown class {label!r}{hint}; the classes are {self}")
        number = index(label)
        if not 0 <= number < self.count:
            raise ConfigError(f"label {number} is outside the {self.count} classes 0 to {self.count - 1}: {self}")
        return number

    def one_or_each(self, labels: Labels, count: int) -> int | Sequence[int | str] | None:
        """Labels as one id for all of `count` pictures, as one checked label for each, or None.

        Raises:
            ConfigError: an unknown class, or another number of labels.
        """
        if labels is None:
            return None
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        if isinstance(labels, int | str | np.integer):
            return self.id(labels)
        if len(labels) != count:
            raise ConfigError(f"{len(labels)} labels for {count} pictures; give one for each, or one for all")
        for label in dict.fromkeys(labels):
            self.id(label)
        return labels

    def name(self, number: int) -> str:
        """The name of a class, or its id as text."""
        return self.names[number] if self.names else str(number)

    def __str__(self) -> str:
        names = self.names or tuple(map(str, range(self.count)))
        return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
