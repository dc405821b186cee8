"""Classes by name: from what people write to the ids that models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, cast
from unicodedata import normalize

import numpy.typing as npt

from spheregen.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    Labels = int | str | Sequence[int | str] | npt.NDArray[Any] | Tensor | None
    """Class ids or names: one for all images, or one for each."""


def __getattr__(name: str) -> Any:
    if name == "Labels":  # classes are looked up without torch too
        from torch import Tensor

        return int | str | Sequence[int | str] | npt.NDArray[Any] | Tensor | None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def plain_labels(labels: Labels) -> int | str | Sequence[int | str] | None:
    """Return labels in arrays, tensors and columns of tables as a list, or as the number of one without axes."""
    found: Any = getattr(labels, "tolist", lambda: labels)()
    return cast("int | str | Sequence[int | str] | None", found)


@dataclass(frozen=True)
class Classes:
    """The classes of a model."""

    count: int
    """0 for an unconditional model."""
    names: tuple[str, ...] = ()
    """Their names; may be empty."""

    def id(self, label: int | str) -> int:
        """Return a class id from an id, its digits or a class name.

        Raises:
            ConfigError: the model is unconditional, has no such class, or two of that name.
        """
        if not self.count:
            raise ConfigError("this model is unconditional and has no classes; leave labels out")
        found: list[Any] = [label]
        if isinstance(label, str):
            found = [number for number, name in enumerate(self.names) if name == label]
            if not found and not label.isascii():  # accents may be composed or not
                same = normalize("NFC", label)
                found = [number for number, name in enumerate(self.names) if normalize("NFC", name) == same]
            if not found and label.isdecimal():
                found = [int(label)]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise ConfigError(f"the label {label!r} is ambiguous, classes {numbers} have that name; give a number")
        try:
            number = index(found[0]) if found and not isinstance(found[0], bool) else -1
        except TypeError:
            number = -1
        if not 0 <= number < self.count:
            hint = did_you_mean(str(label), self.names)
            raise ConfigError(f"label {label!r} is none of the {self.count} classes{hint}: {self}")
        return number

    def name(self, label: int | str) -> str:
        """Return the name of a class; its number where it has none. Errors as of `id`."""
        number = self.id(label)
        return self.names[number] if self.names else str(number)

    def one_or_each(self, labels: Labels, count: int) -> int | Sequence[int | str] | None:
        """Return labels as one id for all of `count` images, as one checked label for each, or None.

        Raises:
            ConfigError: an unknown class, or another number of labels.
        """
        labels = plain_labels(labels)
        if labels is None or isinstance(labels, str) or not isinstance(labels, Sequence):
            return None if labels is None else self.id(labels)
        if len(labels) != count:
            raise ConfigError(f"{len(labels)} labels for {count} images; give one for each, or one for all")
        try:
            different = dict.fromkeys(labels)
        except TypeError as error:
            raise ConfigError(
                f"labels are classes, one for each image, by name or number, not {labels[0]!r}"
            ) from error
        for label in different:
            self.id(label)
        return labels

    def of_each(self, labels: Labels, count: int) -> list[int] | None:
        """Return the ids of `count` images, or None where there are no labels. Errors as of `one_or_each`."""
        chosen = self.one_or_each(labels, count)
        if chosen is None:
            return None
        return [chosen] * count if isinstance(chosen, int) else [self.id(label) for label in chosen]

    def __str__(self) -> str:
        names = self.names or tuple(map(str, range(self.count)))
        return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
