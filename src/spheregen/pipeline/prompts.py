"""The prompts of a call as labels of a model that follows texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen.conditioning import text_labels
from spheregen.networks.text import TextEncoder
from spheregen.texts import one_or_each


@dataclass(frozen=True)
class Prompts:
    """The labels of images that follow texts; texts that several have are there once."""

    texts: tuple[str, ...]
    """R different texts; an empty one is the null."""
    rows: Tensor
    """(R, D + 1) their labels."""
    index: Tensor
    """(B,) the text of each image."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: Any) -> Tensor:
        """Return the labels (K, D + 1) of a part of the images."""
        return self.rows[self.index[part]]

    def repeated(self, times: int) -> Prompts:
        """Return the labels of each image so many times, those of an image together."""
        return Prompts(self.texts, self.rows, self.index.repeat_interleave(times))

    def of(self, part: slice) -> tuple[str, ...]:
        """Return the texts of a part of the images."""
        return tuple(self.texts[row] for row in self.index[part].tolist())


def encode_prompts(given: Any, count: int, encoder: TextEncoder, device: torch.device) -> Prompts:
    """Encode one text for all of `count` images, or one for each.

    Raises:
        ConfigError: another number of texts, or what is no text.
    """
    plain = one_or_each(given, count)
    texts = tuple(dict.fromkeys(plain))
    places = {text: place for place, text in enumerate(texts)}
    told = torch.tensor([bool(text) for text in texts])
    rows = text_labels(encoder.encode(texts), told).to(device)
    index = torch.tensor([places[text] for text in plain], device=device)
    return Prompts(texts, rows, index)
