"""How well samples follow their texts: retrieval, CLIP score, the order of attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import spheregen as sg
from spheregen.data.lettering import slants, weights
from spheregen.evaluation.images import captions_of, open_real, take
from spheregen.evaluation.texts import clip_score, letter_figures, retrieval_accuracy, text_figures
from spheregen.measure.features import load_extractor
from spheregen.measure.features.preprocessing import CLIP_MEAN, CLIP_STD
from spheregen.networks.text import NgramEncoder, TextEncoderConfig, open_text_encoder
from tests.networks.test_text import TOWER, encoder_folder
from tests.training.runs import run as train
from tests.training.test_texts import SHORT, TEXT


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("texts") / "run", *TEXT, *SHORT, recipe="conv-debug")


def test_retrieval_is_1_for_the_right_texts_and_chance_for_others() -> None:
    names = [f"thing number {i}" for i in range(100)] * 3
    vectors = NgramEncoder(512).encode(names)
    assert retrieval_accuracy(vectors, vectors, names) == 1
    strangers = torch.randn(300, 512, generator=torch.Generator().manual_seed(0))
    assert retrieval_accuracy(strangers, vectors, names) < 0.12  # 1/32 is chance
    assert retrieval_accuracy(torch.ones(300, 512), torch.ones(300, 512), names) == 0.5  # ties


def test_clip_score_is_100_where_image_and_text_agree() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert clip_score(x, 3 * x) == pytest.approx(100) and clip_score(x, -x) == 0


def test_samples_and_held_out_images_are_compared_alike(texts: Path) -> None:
    pipe = sg.Pipeline.from_pretrained(texts, device="cpu", quiet=True)
    data = open_real("digits", "train", pipe.image_options)
    extractors = {"own": load_extractor("own")}
    for held_out in (None, open_real("digits", "test", pipe.image_options)):
        found = text_figures(pipe, data, held_out, extractors, clip=None)
        assert found["captions"] == 10 and 0 <= found["retrieval"] <= 1
        assert found["real_retrieval"] > 0.6  # of ten digits


def test_ink_and_shear_of_letters_are_what_they_say() -> None:
    upright = np.zeros((2, 32, 32))
    upright[:, 4:28, 14:17] = 1
    italic = np.stack([np.roll(row, round((16 - y) / 4), axis=-1) for y, row in enumerate(upright[0])])
    upright[1, 4:28, 10:22] = 1  # bold
    assert weights(upright)[1] > 3 * weights(upright)[0]
    assert slants(upright) == pytest.approx([0, 0]) and slants(italic[None])[0] == pytest.approx(0.25, abs=0.02)


class Perfect:
    """Draws combinations as they are asked for."""

    def stream(self, seeds, labels, options=None):  # type: ignore[no-untyped-def]
        images = np.zeros((len(labels), 1, 32, 32), dtype=np.float32)
        for image, text in zip(images, labels, strict=True):
            wide = 2 + 2 * ("regular" in text) + 4 * ("bold" in text)
            for y in range(4, 28):
                place = 12 + (round((16 - y) / 4) if "italic" in text else 0)
                image[0, y, place : place + wide] = 1
        yield type("Output", (), {"tensor": torch.from_numpy(images)})


class Blind:
    def figures(self, images, labels):  # type: ignore[no-untyped-def]
        return {"accuracy": float(len(images) == len(labels))}


def test_attributes_of_letters_order_as_they_are_asked_for() -> None:
    found = letter_figures(Perfect(), Blind(), count=300)  # type: ignore[arg-type]
    assert found == {"letter_accuracy": 1, "weight_order": 1, "slant_order": pytest.approx(1)}


def test_the_clip_score_is_that_of_a_local_clip(texts: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = encoder_folder(tmp_path / "clip", "clip")  # for its tokenizer
    sight = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 8}
    config = transformers.CLIPConfig(
        text_config={**TOWER, "projection_dim": 8}, vision_config={**sight, "projection_dim": 8}, projection_dim=8
    )
    torch.manual_seed(0)
    clip = transformers.CLIPModel(config).eval()
    clip.save_pretrained(folder)

    pipe = sg.Pipeline.from_pretrained(texts, device="cpu", quiet=True)
    data, held_out = (open_real("digits", split, pipe.image_options) for split in ("train", "test"))
    extractors = {"own": load_extractor("own"), "clip": load_extractor("clip", weights=folder)}
    tower = open_text_encoder(TextEncoderConfig(name=str(folder), pooling="projected"))
    found = text_figures(pipe, data, held_out, extractors, clip=tower)

    held_out = held_out.thinned(1000)
    images = take(held_out, 1000).float().expand(-1, 3, -1, -1) / 255
    asked = captions_of(pipe, held_out)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(asked, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        out = clip(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=(images - mean) / std
        )
    cosines = torch.cosine_similarity(out.image_embeds, out.text_embeds).clamp_min(0)
    assert found["real_clip_score"] == pytest.approx(100 * float(cosines.mean()), abs=0.01)
    assert 0 <= found["clip_score"] <= 100
