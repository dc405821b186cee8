"""The text encoder that needs no download: words, pairs of words and pieces of words, hashed into a vector.

It has no weights: the projection of its vectors, which every network learns, is a table of embeddings of all words and
pieces, and a text is the sum of those that it has. Words that were never seen share pieces with words that were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.texts import ngram_tokens

VERSION = 1
"""Of the features: another one gives other vectors."""
LEAST_WIDTH = 16


class NgramEncoder:
    """A `TextEncoder` of hashed words, pairs of neighbours, and pieces of words; the same everywhere, for ever.

    Args:
        width: D, of the vectors: the more, the fewer features share a number. 1024 to 4096 is what it is made for.
        tokens: T, words of a text whose vectors follow its own; `width` is that of all 1 + T together.

    Raises:
        ConfigError: a width that leaves too little room, or no whole number for each.
    """

    slow = False

    def __init__(self, width: int, tokens: int = 0) -> None:
        if width < LEAST_WIDTH * (1 + tokens) or width % (1 + tokens):
            least = f"{LEAST_WIDTH} numbers for each of {1 + tokens}" if tokens else f"{LEAST_WIDTH} numbers"
            raise ConfigError(f"vectors of ngrams have at least {least}, not {width}; 2048 is usual")
        self.width, self.tokens = width, tokens

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "name": "ngrams",
            "width": self.width,
            "version": VERSION,
            **({"tokens": self.tokens} if self.tokens else {}),
        }

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(ngram_tokens(texts, self.width, self.tokens))
