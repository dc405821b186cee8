"""Captions of glyphs: the letter, and the weight, slant and serifs of its font, such as "bold italic serif capital A".

Weight and slant are measured over all glyphs of a font, serifs are what the font's name says. One eighth of the
combinations of the four is never told, so that one can see what a model makes of combinations that it never met.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spheregen.data.order import Integers

Floats = npt.NDArray[np.float64]

LIGHT, BOLD = 0.75, 1.2
"""The ink of a font by that of all fonts, letter by letter, below and above which it is light or bold."""
ITALIC = 0.08
"""The shear of a font above which it is italic: upright ones have 0, most italics 0.15, which is 8 degrees."""
HELD_OUT = 8
"""One of so many combinations is never told."""
WEIGHTS, SLANTS, SERIFS = ("light", "regular", "bold"), ("upright", "italic"), ("sans serif", "serif")
LETTERS = (
    *(f"capital {letter}" for letter in string.ascii_uppercase),
    *(f"small {letter}" for letter in string.ascii_lowercase),
    *(f"digit {digit}" for digit in string.digits),
)
"""In the order of the classes."""
_SANS = re.compile(
    r"\b(sans|gothic|adventor|andika|b612|bebas|biolinum|bright|cabin|cantarell|carlito|code|comfortaa|comic|dosis|"
    r"eurofurence|fira|hack|heros|inconsolata|inter|jura|karla|karmilla|lato|manrope|millimetre|park|play|quicksand|"
    r"roadgeek|roboto|sora|spartan|tuffy|yanone)\b"
)
_SERIF = re.compile(
    r"\b(serif|roman|slab|arapey|bonum|bookletter|caladea|cardo|caslon|century|charis|concrete|courier|cursor|doulos|"
    r"elstobd|essays1743|fanwood|garamond|gentium|goudy|hill|junicode|libertine|pagella|prociono|quattrocento|schola|"
    r"stixgeneral|termes|typewriter|vollkorn)\b"
)
"""Words in the names of families."""


def caption(letter: int, weight: int, slant: int, serif: int | None) -> str:
    """Return the fullest caption of a glyph: numbers of `LETTERS`, `WEIGHTS`, `SLANTS`; of `SERIFS`, or None."""
    words = (WEIGHTS[weight], SLANTS[slant], SERIFS[serif] if serif is not None else "", LETTERS[letter])
    return " ".join(filter(None, words))


def is_held_out(letter: int, weight: int, slant: int, serif: int | None) -> bool:
    """Return whether a combination is never told."""
    return zlib.crc32(caption(letter, weight, slant, serif).encode()) % HELD_OUT == 0


def captions_of_letters(
    ink: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], fonts: Integers, names: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Return the captions of glyphs; those of combinations that are held out have none.

    Args:
        ink: (n, S, S) images, 0 (paper) to 1 (ink).
        labels: (n,) numbers of `LETTERS`.
        fonts: (n,) numbers of fonts.
        names: of the fonts, with their families.
    """
    inked, sheared = weights(ink), slants(ink)
    weight = _of_fonts(inked / _usual(inked, labels)[labels], fonts, len(names))
    slant = _of_fonts(sheared - _usual(sheared, labels)[labels], fonts, len(names))
    serifs = list(map(_serif, names))
    return tuple(
        _captions(letter, int(weight[font] > LIGHT) + int(weight[font] > BOLD), int(slant[font] > ITALIC), serifs[font])
        for letter, font in zip(labels.tolist(), fonts.tolist(), strict=True)
    )


def weights(ink: npt.NDArray[np.floating]) -> Floats:
    """Return the mean ink (n,) of images (n, S, S), 0 to 1."""
    found: Floats = ink.mean(axis=(1, 2), dtype=np.float64)
    return found


def slants(ink: npt.NDArray[np.floating]) -> Floats:
    """Return the shear (n,) of the ink of images (n, S, S): pixels to the right for each one upwards.

    It is that of the line of mean columns, by moments of second order; 0 of an image without ink.
    """
    side = ink.shape[-1]
    y, x = (axis.ravel() for axis in np.mgrid[:side, :side] - (side - 1) / 2)
    moments = ink.reshape(len(ink), -1).astype(np.float64) @ np.stack([np.ones_like(x), x, y, x * y, y * y], axis=1)
    total = np.maximum(moments[:, 0], 1e-9)
    mean_x, mean_y, xy, yy = (moments[:, 1:] / total[:, None]).T
    found: Floats = (mean_x * mean_y - xy) / np.maximum(yy - mean_y**2, 1e-9)
    return found


def _usual(measured: Floats, labels: npt.NDArray[np.integer]) -> Floats:
    """Return the median of each letter; of one that is not there 1."""
    letters = range(int(labels.max()) + 1)
    return np.array([np.median(of) if len(of := measured[labels == letter]) else 1.0 for letter in letters])


def _of_fonts(measured: Floats, fonts: Integers, count: int) -> Floats:
    """Return the median of each font (count,); of one without glyphs 0."""
    order = np.argsort(fonts, kind="stable")
    ends = np.searchsorted(fonts[order], np.arange(count + 1))
    return np.array([np.median(measured[order[a:b]]) if b > a else 0.0 for a, b in itertools.pairwise(ends)])


def _serif(name: str) -> int | None:
    low = name.lower()
    return 0 if _SANS.search(low) else 1 if _SERIF.search(low) else None


@functools.cache
def _captions(letter: int, weight: int, slant: int, serif: int | None) -> tuple[str, ...]:
    """Return several ways to say it, fuller ones first; what is usual is not always said. None where it is held out."""
    if is_held_out(letter, weight, slant, serif):
        return ()
    full = caption(letter, weight, slant, serif)
    unusual = [word for word in (WEIGHTS[weight] * (weight != 1), SLANTS[slant] * (slant != 0)) if word]
    short = " ".join([*unusual, LETTERS[letter]])
    of = f" {SERIFS[serif]}" if serif is not None else ""
    return full, short, f"{LETTERS[letter]}, {WEIGHTS[weight]} and {SLANTS[slant]}{of}"
