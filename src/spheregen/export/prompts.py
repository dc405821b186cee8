"""The prompts of an exported model that follows texts, where a `Classes` is for one that follows classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spheregen.errors import ConfigError
from spheregen.export.noise import Array
from spheregen.texts import ngram_tokens, one_or_each

NEGATIVE = "negative_prompt"


class Texts:
    """Prompts, from what people write to what the graphs take.

    Args:
        identity: of the text encoder, as the manifest has it.
    """

    count = 0
    """Of classes."""

    def __init__(self, identity: Mapping[str, Any]) -> None:
        self.identity, self._width, self._tokens = identity, int(identity["width"]), int(identity.get("tokens", 0))

    def of_each(self, prompts: Any, count: int) -> list[str] | None:
        """Return the texts of `count` images, or None where there are none.

        Raises:
            ConfigError: another number of texts, or what is no text.
        """
        return None if prompts is None else one_or_each(prompts, count)

    def weights(self, texts: Sequence[str] | None, count: int) -> Array:
        """Return texts as the graphs take them, (B, D + 1): a vector and the share of the null, see
        `conditioning.text_labels`; None is the null.

        Raises:
            ConfigError: the encoder is not part of exports.
        """
        null = np.eye(self._width + 1, dtype=np.float32)[-1:]
        if texts is None:
            return np.repeat(null, count, axis=0)
        if self.identity["name"] != "ngrams":
            raise ConfigError(
                f"the text encoder {self.identity['name']} is not part of an export; prompts need the Pipeline, or a "
                "model whose encoder is ngrams"
            )
        different = sorted(set(texts))
        vectors = np.pad(ngram_tokens(different, self._width, self._tokens), ((0, 0), (0, 1)))
        rows = {text: vector if text else null[0] for text, vector in zip(different, vectors, strict=True)}
        return np.stack([rows[text] for text in texts])
