"""Text encoders: from texts to vectors that networks project into their conditions.

A model keeps what its encoder was (`TextEncoder.identity`), and opens the same one again. The one that needs no
download is `ngrams`; those of the package transformers, and others, are opened by their names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError, Settings, check_choices
from spheregen.external import reason
from spheregen.networks.text.ngrams import NgramEncoder

NGRAMS = "ngrams"
"""The name of the encoder of our own."""
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Settings):
    """The choice of a text encoder.

    Raises:
        ConfigError: a value outside its range, or one that the encoder does not read.
    """

    name: str = NGRAMS
    """`ngrams`: hashed words and letters, whose weights are the projections that are trained with the model; a folder,
    or user/name on the Hub, that transformers opens; or `module:factory` of your own."""
    revision: str | None = None
    """A branch, tag or commit of a Hub encoder."""
    pooling: Literal["auto", "mean", "first", "last", "projected"] = "auto"
    """The vector of a text: the mean of its tokens, the first or the last one, or the projection into a joint space of
    texts and images; `auto` is what the encoder was made for."""
    max_tokens: int | None = None
    """Tokens behind which a text is cut; None: as many as the encoder takes, at most 512."""
    tokens: int = 0
    """Tokens whose vectors follow that of their text, for models with as many `model.text_tokens`: words of ngrams."""

    def __post_init__(self) -> None:
        check_choices(self, "text.")
        if not self.name.strip():
            raise ConfigError("text.name is empty; use ngrams, a folder, user/name on the Hub, or module:factory")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"text.max_tokens is at least 1, not {self.max_tokens}")
        if self.tokens < 0 or (self.tokens and _FACTORY.fullmatch(self.name)):
            raise ConfigError(f"text.tokens is not negative, and 0 with an encoder of your own, not {self.tokens}")
        given = {"revision": self.revision, "pooling": self.pooling != "auto", "max_tokens": self.max_tokens}
        if (self.name == NGRAMS or _FACTORY.fullmatch(self.name)) and any(given.values()):
            extra = next(name for name, value in given.items() if value)
            raise ConfigError(f"text.{extra} is of encoders of transformers; leave it out with {self.name}")


@runtime_checkable
class TextEncoder(Protocol):
    """Makes vectors of texts."""

    @property
    def width(self) -> int:
        """Numbers D of a vector."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values that tell its vectors from those of other encoders; `name` and `width` are among them."""

    @property
    def slow(self) -> bool:
        """Vectors are worth keeping on disk."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return vectors (B, D) float32 of length 1, on the CPU; a text's does not depend on the others.

        With tokens, each of length 1 or 0, they follow the vector of their text in one row.
        """


def open_text_encoder(config: TextEncoderConfig, width: int | None = None) -> TextEncoder:
    """Open a text encoder.

    Args:
        config: the choice.
        width: D; needed by `ngrams`, which takes any.

    Raises:
        SphereGenError: a package that it needs is not installed.
        ModelFileError: it is missing or broken.
        ConfigError: its vectors are of another width.
    """
    found: TextEncoder
    if config.name == NGRAMS:
        if width is None:
            raise ConfigError("give the width of the vectors of ngrams")
        return NgramEncoder(width, config.tokens)
    if _FACTORY.fullmatch(config.name):
        found = _made_by(config.name)
    else:
        from spheregen.networks.text.transformers import load_text_transformer

        found = load_text_transformer(config.name, config.revision, config.pooling, config.max_tokens, config.tokens)
    if width not in (None, found.width):
        raise ConfigError(
            f"the text encoder {config.name} gives vectors of {found.width} numbers, the model takes {width}; set "
            f"model.text_width={found.width}"
        )
    return found


def reopen_text_encoder(identity: Mapping[str, Any]) -> TextEncoder:
    """Open the encoder that a model was trained with.

    Raises:
        SphereGenError: it is missing, needs a package that is not installed, or has other weights now.
    """
    try:
        config = TextEncoderConfig(
            **{
                name: identity[name]
                for name in ("name", "revision", "pooling", "max_tokens", "tokens")
                if name in identity
            }
        )
        width = int(identity["width"])
    except (TypeError, ValueError, KeyError) as error:
        raise ModelFileError(f"the model's text encoder is described wrongly ({reason(error)}); correct it") from error
    found = open_text_encoder(config, width)
    differing = [name for name, value in identity.items() if found.identity.get(name) != value]
    if differing:
        name = differing[0]
        raise ModelFileError(
            f"the text encoder {config.name} is another one than the model was trained with: its {name} is "
            f"{found.identity.get(name)}, not {identity[name]}; get that one, by its revision if it has one"
        )
    return found


def _made_by(name: str) -> TextEncoder:
    module, _, factory = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), factory)()
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"{name} gives no text encoder ({reason(error)}); write module:factory, a module that can be imported from "
            "here and a function in it that takes nothing"
        ) from error
    if not isinstance(found, TextEncoder):
        raise ConfigError(f"{name} gives a {type(found).__name__}; a text encoder has width, identity, slow and encode")
    return found
