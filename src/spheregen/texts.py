"""Texts as people write them, and their vectors by hashed words and pieces of words: what needs no torch.

Source: Weinberger et al. 2009 (arXiv 0902.2206), hashed features with signs; Bojanowski et al. 2017 (arXiv 1607.04606),
words as sums of their pieces.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spheregen.errors import ConfigError

MOST_CHARACTERS = 10_000
"""A longer text is a mistake, not a caption."""
PIECES = (3, 4)
"""Letters of a piece of a word, with marks of its ends."""
_WORD_SHARE, _PAIR_SHARE, _PIECE_SHARE = 1.0, 0.5, 0.5  # squared lengths of the parts of a vector
_TOKEN = re.compile(r"\w+|[^\w\s]")


def plain_text(text: str) -> str:
    """Return a caption or prompt as encoders read it: composed letters, single spaces, nothing that is no Unicode."""
    return " ".join(unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode().split())


def one_or_each(given: Any, count: int) -> list[str]:
    """Return the plain prompt of each of `count` images.

    Args:
        given: a text for all images, or a list of one for each.

    Raises:
        ConfigError: another number of texts, or what is no text.
    """
    each = [given] * count if isinstance(given, str) else given
    if not isinstance(each, Sequence):
        raise ConfigError(f"this model follows texts: a prompt is text, or a list of one for each image, not {given!r}")
    if len(each) != count:
        raise ConfigError(f"{len(each)} prompts for {count} images; give one for each, or one for all")
    plain = {text: plain_text(text) for text in set(map(_checked, each))}
    return [plain[text] for text in each]


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"a prompt is text, not {text!r:.100}")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"the prompt has {len(text)} characters; give at most {MOST_CHARACTERS}: {text[:60]!r} ...")
    return text


def ngram_vectors(texts: Sequence[str], width: int) -> npt.NDArray[np.float32]:
    """Return vectors (B, width) of length 1: words, pairs of neighbours and pieces of words, hashed with signs.

    Each adds to one of the numbers. They are the same everywhere, for ever; those of a text without any are 0.
    """
    found = np.zeros((len(texts), width), np.float32)
    for row, text in zip(found, texts, strict=True):
        for features, share in _parts(text):
            if features:
                places, signs = zip(*(_place(each) for each in features), strict=True)
                weight = np.float32((share / len(features)) ** 0.5)
                np.add.at(row, np.array(places) % width, weight * np.array(signs, np.float32))
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = found / np.maximum(lengths, np.float32(1e-12))
    return unit


def ngram_tokens(texts: Sequence[str], width: int, tokens: int) -> npt.NDArray[np.float32]:
    """Return vectors (B, width) of texts and of their first words, one behind the other; zeros where there are none.

    Args:
        width: of a text's vector and of those of its words together.
        tokens: T, words.
    """
    each = width // (1 + tokens)
    found = np.zeros((len(texts), 1 + tokens, each), np.float32)
    found[:, 0] = ngram_vectors(texts, each)
    for row, text in zip(found, texts, strict=True):
        words = _TOKEN.findall(unicodedata.normalize("NFKC", text))[:tokens]
        row[1 : 1 + len(words)] = ngram_vectors(words, each)
    return found.reshape(len(texts), -1)


def _parts(text: str) -> Iterator[tuple[list[str], float]]:
    """Yield the features of a text by kind, and the squared length that each kind has in the vector."""
    words = _TOKEN.findall(unicodedata.normalize("NFKC", text))
    plain = [word.casefold() for word in words]
    # a word that is not in small letters counts as it stands too: "A" is not "a"
    as_written = [f"c {word}" for word, small in zip(words, plain, strict=True) if word != small]
    yield [*(f"w {word}" for word in plain), *as_written], _WORD_SHARE
    yield [f"p {a} {b}" for a, b in itertools.pairwise(plain)], _PAIR_SHARE
    marked = [f"<{word}>" for word in plain if len(word) > 1]
    yield [f"n {w[i : i + n]}" for w in marked for n in PIECES for i in range(len(w) - n + 1)], _PIECE_SHARE


@functools.lru_cache(maxsize=1 << 16)
def _place(feature: str) -> tuple[int, float]:
    """Return a number from 0 to 2^62 that stands for a feature, and its sign."""
    number = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    return number >> 2, 1.0 if number & 1 else -1.0
