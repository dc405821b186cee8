"""The text encoder that needs no download: words, pairs of words and pieces of words, hashed into a vector.

It has no weights: the projection of its vectors, which every network learns, is a table of embeddings of all words and
pieces, and a text is the sum of those that it has. Words that were never seen share pieces with words that were.

Source: Weinberger et al. 2009 (arXiv 0902.2206), hashed features with signs; Bojanowski et al. 2017 (arXiv 1607.04606),
words as sums of their pieces.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.errors import ConfigError

VERSION = 1
"""Of the features: another one gives other vectors."""
PIECES = (3, 4)
"""Letters of a piece of a word, with marks of its ends."""
LEAST_WIDTH = 16
_WORD_SHARE, _PAIR_SHARE, _PIECE_SHARE = 1.0, 0.5, 0.5  # squared lengths of the parts of a vector
_TOKEN = re.compile(r"\w+|[^\w\s]")


class NgramEncoder:
    """A `TextEncoder` of hashed words, pairs of neighbours, and pieces of words; the same everywhere, for ever.

    Args:
        width: D, of the vectors: the more, the fewer features share a number. 1024 to 4096 is what it is made for.

    Raises:
        ConfigError: a width that leaves too little room.
    """

    slow = False

    def __init__(self, width: int) -> None:
        if width < LEAST_WIDTH:
            raise ConfigError(f"vectors of ngrams have at least {LEAST_WIDTH} numbers, not {width}; 2048 is usual")
        self.width = width

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": "ngrams", "width": self.width, "version": VERSION}

    def encode(self, texts: Sequence[str]) -> Tensor:
        found = torch.zeros(len(texts), self.width, device="cpu")
        for row, text in zip(found, texts, strict=True):
            for features, share in _parts(text):
                if features:
                    places, signs = zip(*(_place(each) for each in features), strict=True)
                    weight = (share / len(features)) ** 0.5
                    row.index_add_(0, torch.tensor(places) % self.width, weight * torch.tensor(signs))
        return torch.nn.functional.normalize(found, dim=1)


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
