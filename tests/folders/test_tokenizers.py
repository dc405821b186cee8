"""Tokenizers by name, their folders, and what they cost without their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.registry import cost_of
from spheregen.family.sphere_encoder.network import SphereAutoencoder, SphereTokenizer
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import RECORD, save_model, tokenizer_fingerprint
from spheregen.folders.tokenizers import blank_tokenizer, open_tokenizer, save_tokenizer
from spheregen.measure.cost import Cost
from tests.factories import tiny_autoencoder


def autoencoder(shift: float = 0, **changes: Any) -> SphereAutoencoder:
    model = tiny_autoencoder(**{"num_classes": 0, **changes}).eval()
    with torch.no_grad():
        next(model.parameters()).add_(shift)
    return model


def test_an_autoencoder_is_a_tokenizer(tmp_path: Path) -> None:
    model = autoencoder()
    save_model(tmp_path / "m", model, ModelInfo())
    opened = open_tokenizer(tmp_path / "m")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(opened.tokenizer.encode(images), model.encode(images))
    assert opened.fingerprint == tokenizer_fingerprint(SphereTokenizer(model))


def test_a_tokenizer_is_written_once_and_replaced_by_another(tmp_path: Path) -> None:
    folder, one, other = tmp_path / "t", SphereTokenizer(autoencoder()), SphereTokenizer(autoencoder(1.0))
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
    save_tokenizer(one, folder)
    assert open_tokenizer(folder).fingerprint == tokenizer_fingerprint(one)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    save_tokenizer(SphereTokenizer(autoencoder()), folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    save_tokenizer(other, folder)
    assert open_tokenizer(folder).fingerprint == tokenizer_fingerprint(other)
    (folder / RECORD).write_text("half", encoding="utf-8")  # interrupted while it was written
    save_tokenizer(other, folder)
    assert json.loads((folder / RECORD).read_text())["fingerprint"]


def test_broken_and_foreign_folders_are_named(tmp_path: Path) -> None:
    for name in ("nowhere", "/no/such/folder", ""):
        with pytest.raises(ModelFileError, match="no tokenizer"):
            open_tokenizer(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        open_tokenizer(tmp_path / "empty")
    save_model(tmp_path / "gauss", autoencoder(prior="gaussian"), ModelInfo())
    with pytest.raises(ModelFileError, match="gaussian"):
        open_tokenizer(tmp_path / "gauss")
    save_model(tmp_path / "m", autoencoder(), ModelInfo())
    with pytest.raises(ConfigError, match="leave image size and packing out"):
        open_tokenizer(tmp_path / "m", image_size=8)


def test_the_published_cost_table() -> None:
    """Do et al. 2026: GFLOPs of 2, 4 and 6 steps, without and with guidance; parameters."""
    pytest.importorskip("transformers", reason="the encoder of the published tokenizer is built by transformers")
    tokenizer = blank_tokenizer("rae-dinov2-base")

    def cost(size: str, classes: int) -> Cost:
        config = LatentDenoiserConfig(image_size=256, tokens=256, channels=768, size=size, num_classes=classes)
        with torch.device("meta"):
            return cost_of(LatentGenerator(LatentDenoiser(config), tokenizer))

    base = cost("base", 102)
    assert base.parts["denoiser"].params == pytest.approx(130e6, rel=0.01)
    for guided, totals in ((False, (302, 390, 478)), (True, (390, 567, 743))):
        for steps, total in zip((2, 4, 6), totals, strict=True):
            assert base.generation_gflops(steps, guided=guided) == pytest.approx(total, rel=0.01)
    large = cost("xlarge", 1000)
    assert large.parts["denoiser"].params == pytest.approx(675e6, rel=0.01)
    assert large.parts["denoiser"].gflops == pytest.approx(230, rel=0.01)
    assert large.parts["tokenizer_decoder"].params == pytest.approx(415e6, rel=0.01)
    assert large.parts["tokenizer_decoder"].gflops == pytest.approx(213, rel=0.01)
