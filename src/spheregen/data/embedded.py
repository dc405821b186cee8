"""Data sets that come with the package: handwritten digits, and letters of many typefaces.

- `digits`: 1797 grey images of 8x8 pixels in ten classes. E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
  Digits, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0: its test set, in its own
  order, which is also that of scikit-learn's `load_digits` (scripts/build_digits.py).
- `letters`: 46 810 grey images of 32x32 pixels, A-Z, a-z and 0-9 of 744 free fonts, split by family. Only fonts under
  OFL-1.1, Apache-2.0, MIT or in the public domain; assets/CREDITS-letters.txt names all of them
  (scripts/build_letters.py). Their captions name letter, weight, slant and serifs, see `data.lettering`.
"""

from __future__ import annotations

import functools
import io
import lzma
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image

from spheregen.data.captions import Captions
from spheregen.data.lettering import captions_of_letters
from spheregen.data.order import Integers as Numbers
from spheregen.data.source import ImageSource, digest
from spheregen.errors import DataError, did_you_mean
from spheregen.pixels import Pixels


def load_digits() -> tuple[Pixels, Pixels]:
    """Read the embedded file: images (1797, 8, 8) uint8, 0 (paper) .. 16 (ink), and labels (1797,), 0 .. 9."""
    with (
        resources.files("spheregen").joinpath("assets/digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return arrays["images"], arrays["labels"]


@functools.cache
def load_letters() -> tuple[Pixels, Pixels]:
    """Read the embedded file: images (46810, 32, 16) uint8, two pixels of 4 bits in each byte, and labels (46810,)."""
    arrays = _unpacked("letters")
    return arrays["images"], arrays["labels"]


def load_letter_fonts() -> tuple[Numbers, list[str]]:
    """Read the embedded file: the font (46810,) of each glyph, and the names of fonts, family and font."""
    arrays = _unpacked("letters-fonts")
    return arrays["fonts"].astype(np.int64), arrays["names"].tobytes().decode().splitlines()


def _unpacked(name: str) -> dict[str, Any]:
    data = resources.files("spheregen").joinpath(f"assets/{name}.npz.xz").read_bytes()
    with np.load(io.BytesIO(lzma.decompress(data)), allow_pickle=False) as arrays:
        return dict(arrays)


@functools.cache
def letter_captions() -> tuple[tuple[str, ...], ...]:
    """Return the captions of all glyphs of `letters`, see `data.lettering`."""
    (packed, labels), (fonts, names) = load_letters(), load_letter_fonts()
    return captions_of_letters(_pixels(packed) / np.float32(15), labels, fonts, names)


def _pixels(packed: Pixels) -> Pixels:
    """Return packed images (n, 32, 16) as (n, 32, 32), 0 .. 15."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], -1)


TWINS = ("Il1", "Oo0")
"""Letters whose shapes coincide in many typefaces: scores count each group as one."""


@dataclass(frozen=True)
class _Embedded:
    load: Callable[[], tuple[Pixels, Pixels]]
    size: int
    highest: int
    """The value of full ink."""
    train_count: int
    """So many of the first are for training, the others are held out."""
    class_names: tuple[str, ...]
    packed: bool = False
    """Two pixels of 4 bits in each byte."""
    captions: Callable[[], tuple[tuple[str, ...], ...]] | None = None
    """Those of all images."""


EMBEDDED: Mapping[str, _Embedded] = MappingProxyType(
    {
        "digits": _Embedded(load_digits, 8, 16, 1400, tuple(string.digits)),
        "letters": _Embedded(
            load_letters,
            32,
            15,
            41974,
            (*string.ascii_uppercase, *string.ascii_lowercase, *string.digits),
            packed=True,
            captions=letter_captions,
        ),
    }
)
"""The sets by name."""


class EmbeddedSource(ImageSource):
    """An embedded set as images of mode L, light ink on black: value v becomes round(v * 255 / highest).

    Raises:
        DataError: there is no such split.
    """

    flips_allowed = False

    def __init__(self, name: str, split: str = "train") -> None:
        about = EMBEDDED[name]
        splits = {"train": slice(0, about.train_count), "test": slice(about.train_count, None), "all": slice(0, None)}
        if split not in splits:
            hint = did_you_mean(split, splits)
            raise DataError(f"{name} has no split {split!r}; choose one of {', '.join(splits)}{hint}")
        part = splits[split]
        images, labels = (values[part] for values in about.load())
        self.name, self.split, self.native_size = name, split, about.size
        self.class_names = about.class_names
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.fingerprint = digest(images.tobytes(), labels.tobytes())
        self.encoded_bytes = images.nbytes
        self._first, self._images, self._packed = part.start, images, about.packed
        self._grey = np.rint(np.arange(about.highest + 1) * (255.0 / about.highest)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def read_bytes(self, index: int) -> bytes:
        file = io.BytesIO()
        self.read(index).save(file, "PNG")
        return file.getvalue()

    def read(self, index: int) -> Image.Image:
        values = self._images[index]
        if self._packed:
            values = _pixels(values)
        return Image.fromarray(self._grey[values])

    def describe(self, index: int) -> str:
        return f"{self.name} {self._first + index}"

    def captions(self, column: str | None = None) -> Captions | None:
        told = EMBEDDED[self.name].captions
        if told is None or column is not None:
            return super().captions(column)
        return Captions(told()[self._first : self._first + len(self)])
