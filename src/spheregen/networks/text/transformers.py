"""Text encoders by the package transformers: towers of CLIP and SigLIP, encoders of T5, sentence encoders, and small
language models, whose tokens are averaged.

No code of a repository is run, and only safetensors are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError
from spheregen.external import Place, import_package, load_network, locate, quiet, read_json, reason
from spheregen.files import parse_json
from spheregen.networks.frozen import Frozen
from spheregen.tensors import weights_hash

MOST_TOKENS = 512
"""Of a text, where nobody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """Encoders that are used in one way."""

    network: str
    """The class in transformers."""
    pooling: str
    """The usual one."""
    pooled: bool = False
    """The network itself gives the first or last token, ready for use, as `pooler_output`."""
    projected: str | None = None
    """The class with a projection into the joint space, if there is one."""
    padded: bool = False
    """Trained with texts that were filled up to their full length."""


_CLIP = _Kind(network="CLIPTextModel", projected="CLIPTextModelWithProjection", pooling="last", pooled=True)
_KINDS: Mapping[str, _Kind] = {
    **dict.fromkeys(("clip", "clip_text_model"), _CLIP),
    **dict.fromkeys(
        ("siglip", "siglip_text_model"), _Kind(network="SiglipTextModel", pooling="last", pooled=True, padded=True)
    ),
    **dict.fromkeys(
        ("siglip2", "siglip2_text_model"), _Kind(network="Siglip2TextModel", pooling="last", pooled=True, padded=True)
    ),
    **{kind: _Kind(network=f"{name}EncoderModel", pooling="mean") for kind, name in (
        ("t5", "T5"), ("mt5", "MT5"), ("umt5", "UMT5")
    )},
}  # fmt: skip
"""By the `model_type` of config.json; all others are opened as they are and averaged."""
_OTHERS = _Kind(network="AutoModel", pooling="mean")
_SENTENCES = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}


class TextTransformer(Frozen):
    """A `TextEncoder` of a network of transformers, see `load_text_transformer`.

    Args:
        network: gives hidden states, and perhaps a pooled one, for token ids and a mask.
        tokenizer: of transformers.
        kind: how it is used.
        pooling: `mean`, `first`, `last` or `projected`.
        max_tokens: of a text.
        tokens: of a text, whose last hidden states follow its vector.
        identity: all that tells it from others but its width and weights.
    """

    slow = True

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        kind: _Kind,
        pooling: str,
        max_tokens: int,
        tokens: int,
        identity: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network, self._tokenizer, self._kind = network, tokenizer, kind
        self._pooling, self._max_tokens, self._tokens = pooling, max_tokens, tokens
        self.freeze()
        self.width = self.encode(["a"]).shape[1]
        self.identity: Mapping[str, Any] = {
            **identity, "width": self.width, "weights": weights_hash(network.state_dict())
        }  # fmt: skip

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return vectors (B, D) float32 of length 1, on the CPU; those of tokens follow in the row of their text."""
        tokens = self._tokenizer(
            list(texts),
            padding="max_length" if self._kind.padded else True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        place = next(self.network.parameters()).device
        ids, mask = tokens["input_ids"].to(place), tokens.get("attention_mask", torch.ones_like(tokens["input_ids"]))
        mask = mask.to(place)
        output = self.network(input_ids=ids, **({} if self._kind.padded else {"attention_mask": mask}))
        vectors = functional.normalize(self._pooled(output, mask).float(), dim=1)
        if not self._tokens:
            return vectors.cpu()
        hidden = functional.normalize(output.last_hidden_state.float(), dim=2) * mask.unsqueeze(-1)
        if hidden.shape[2] != vectors.shape[1]:
            raise ConfigError(
                f"tokens have {hidden.shape[2]} numbers and the vector of a text {vectors.shape[1]}; take another "
                "text.pooling"
            )
        missing = self._tokens - hidden.shape[1]
        hidden = functional.pad(hidden, (0, 0, 0, missing)) if missing > 0 else hidden[:, : self._tokens]
        return torch.cat([vectors[:, None], hidden], dim=1).flatten(1).cpu()

    def _pooled(self, output: Any, mask: Tensor) -> Tensor:
        """Return one vector (B, D) of each text."""
        if self._pooling == "projected":
            return output.text_embeds  # type: ignore[no-any-return]
        if self._pooling == self._kind.pooling and self._kind.pooled:
            return output.pooler_output  # type: ignore[no-any-return]
        hidden: Tensor = output.last_hidden_state.float()
        if self._pooling == "first":
            return hidden[:, 0]
        if self._pooling == "last":
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            return hidden[torch.arange(len(hidden)), last]
        share = mask.unsqueeze(-1).float()
        return (hidden * share).sum(1) / share.sum(1).clamp_min(1)


def load_text_transformer(
    source: str, revision: str | None = None, pooling: str = "auto", max_tokens: int | None = None, tokens: int = 0
) -> TextTransformer:
    """Load a text encoder in float32, on the CPU.

    Args:
        source: a folder, or user/name on the Hub, kept in its usual cache and taken from there without a network.
        revision: a branch, tag or commit on the Hub.
        pooling, max_tokens, tokens: see `TextEncoderConfig`.

    Raises:
        SphereGenError: transformers is not installed.
        ModelFileError: it is missing, out of reach, incomplete, or no text encoder.
        ConfigError: it has no projection.
    """
    transformers = import_package("transformers", "encoders", f"the text encoder {source}")
    place = locate(source if revision is None else f"{source}@{revision}", "the text encoder", folder="its folder")
    config = read_json(place.config, source)
    model_type = str(config.get("model_type"))
    kind = _KINDS.get(model_type, _OTHERS)
    usual = (_sentence_pooling(place) if kind is _OTHERS else None) or kind.pooling
    pooling = usual if pooling == "auto" else pooling
    if pooling == "projected" and kind.projected is None:
        raise ConfigError(f"the text encoder {source} ({model_type}) has no projection; take another text.pooling")
    name = kind.projected if pooling == "projected" and kind.projected else kind.network
    try:
        with quiet(transformers):
            network = load_network(getattr(transformers, name), place, unread="pooler")
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place.name, revision=place.revision or "main", trust_remote_code=False
            )
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError("its tokenizer has neither a token for padding nor one for the end")
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        own = network.config.get_text_config() if hasattr(network.config, "get_text_config") else network.config
        longest = min(int(getattr(own, "max_position_embeddings", MOST_TOKENS)), int(tokenizer.model_max_length))
        if model_type in ("roberta", "xlm-roberta"):  # whose positions begin behind that of the padding
            longest = min(longest, int(own.max_position_embeddings) - int(own.pad_token_id) - 1)
        most = min(longest, max_tokens or MOST_TOKENS)
        identity = {"name": source, "revision": revision, "pooling": pooling, "max_tokens": most}
        identity |= {"tokens": tokens} if tokens else {}
        return TextTransformer(network, tokenizer, kind, pooling, most, tokens, identity)
    except ConfigError:
        raise
    except Exception as error:  # transformers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{source} cannot be loaded as a text encoder ({reason(error)}); give a folder with config.json, "
            "model.safetensors and the files of its tokenizer, or user/name on the Hub"
        ) from error


def _sentence_pooling(place: Place) -> str | None:
    """Return the pooling that a sentence encoder was trained with, where it says so."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        told = parse_json((Path(place.name) / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        return next((name for key, name in _SENTENCES.items() if told.get(key)), None)
    return None
