"""The prompts of a call as labels of a model that follows texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spheregen.conditioning import text_labels
from spheregen.errors import ConfigError
from spheregen.networks.text import MOST_CHARACTERS, TextEncoder, plain_text


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
    each = [given] if isinstance(given, str) else given
    if not isinstance(each, Sequence):
        raise ConfigError(f"this model follows texts: a prompt is text, or a list of one for each image, not {given!r}")
    if each is given and len(each) != count:
        raise ConfigError(f"{len(each)} prompts for {count} images; give one for each, or one for all")
    plain = [plain_text(_checked(text)) for text in each]
    texts = tuple(dict.fromkeys(plain))
    places = {text: place for place, text in enumerate(texts)}
    told = torch.tensor([bool(text) for text in texts])
    rows = text_labels(encoder.encode(texts), told).to(device)
    index = torch.tensor([places[text] for text in plain], device=device)
    return Prompts(texts, rows, index.expand(count))


def _checked(text: Any) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"a prompt is text, not {text!r:.100}")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"the prompt has {len(text)} characters; give at most {MOST_CHARACTERS}: {text[:60]!r} ...")
    return text
