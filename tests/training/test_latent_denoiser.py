"""A latent denoiser trains through the one trainer: exact resume, several processes, the right cache and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spheregen as sg
from spheregen.errors import ConfigError, DataError, ModelFileError
from spheregen.family.sphere_latent_encoder.network import LatentGenerator
from spheregen.folders.model_folder import load_model
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.training.recipe import build_recipe, load_recipe
from spheregen.training.trainer import train
from tests.training.runs import Messages, assert_same_run, interrupted, run


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("denoiser") / "run", recipe="sle-debug", data=cache)


def test_it_learns(whole: Path) -> None:
    entries = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["reconstruction"] < 0.85 * entries[0]["reconstruction"]
    assert {"consistency", "reconstruction_cosine", "consistency_cosine"} <= entries[0].keys()
    assert len(list((whole / "previews").glob("*.png"))) == 2


def test_the_folder_needs_nothing_else(whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole, moved)
    shutil.rmtree(moved / "state")
    pipe = sg.Pipeline.from_pretrained(moved, device="cpu", quiet=True)
    assert isinstance(pipe.model, LatentGenerator)
    out = pipe.generate(12, seed=3)
    assert out.tensor.shape == (12, 1, 8, 8)
    assert out.settings["schedule"] == "decay"
    again = pipe.generate(1, seed=9, labels=9)
    torch.testing.assert_close(again.tensor[0], out.tensor[6], atol=1e-5, rtol=1e-4)  # whatever it is made with
    # the tokenizer in it is the one that made the latents
    assert open_tokenizer(moved).fingerprint == open_tokenizer("digits").fingerprint


def test_a_broken_tokenizer_is_named(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(ModelFileError, match="tokenizer"):
        load_model(broken)


def test_an_interrupted_run_continues_to_the_bit(cache: Path, whole: Path, tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "run", recipe="sle-debug", data=cache, stop=17)
    run(folder, recipe="sle-debug", data=cache)
    assert_same_run(folder, whole)


def test_it_starts_from_another_denoiser(cache: Path, whole: Path, tmp_path: Path) -> None:
    messages = Messages()
    recipe = load_recipe("sle-debug", ["train.steps=1", "optimizer.lr=1e-9"], data=str(cache), init=str(whole))
    train(recipe, tmp_path / "tuned", device="cpu", reporter=messages)
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "tuned", whole))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    assert any("kept" in line for line in messages.lines)
    with pytest.raises(ConfigError, match="of another kind"):
        train(load_recipe("sle-debug", data=str(cache), init="digits"), tmp_path / "x", device="cpu")
    deeper = load_recipe(
        "sle-debug",
        ["train.steps=1", "model.size={width: 32, depth: 3, heads: 2}", "model.num_classes=0"],
        data=str(cache),
        init=str(whole),
    )
    lines = Messages()
    train(deeper, tmp_path / "deeper", device="cpu", reporter=lines)
    assert any("fresh" in line for line in lines.lines) and any("dropped" in line for line in lines.lines)


def test_another_data_set_or_tokenizer_is_refused(cache: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="spheregen encode TOKENIZER digits --out CACHE"):
        train(load_recipe("sle-debug", data="digits"), tmp_path / "a", device="cpu")
    with pytest.raises(ConfigError, match="is a latent cache"):
        train(load_recipe("debug", data=str(cache)), tmp_path / "b", device="cpu")
    with pytest.raises(DataError, match=r"\(4, 6\)|4 x 6"):
        train(load_recipe("sle-debug", ["model.channels=5"], data=str(cache)), tmp_path / "c", device="cpu")
    with pytest.raises(ConfigError, match="10 classes"):
        train(load_recipe("sle-debug", ["model.num_classes=3"], data=str(cache)), tmp_path / "d", device="cpu")
    assert not any((tmp_path / name).exists() for name in "abcd")
    swapped = tmp_path / "swapped"
    shutil.copytree(cache, swapped)
    shutil.rmtree(swapped / "tokenizer")
    from spheregen.family.sphere_encoder.network import SphereAutoencoder, SphereTokenizer
    from spheregen.folders.tokenizers import save_tokenizer

    config = load_model(open_folder("digits")).model.config
    save_tokenizer(SphereTokenizer(SphereAutoencoder(config)), swapped / "tokenizer")
    with pytest.raises(DataError, match="tokenizer"):
        train(load_recipe("sle-debug", data=str(swapped)), tmp_path / "e", device="cpu")


def open_folder(name: str) -> Path:
    from spheregen.folders.model_source import find_model

    return find_model(name)


def test_kinds_are_told_apart() -> None:
    values = load_recipe("sle-debug").model_dump(mode="json")
    assert build_recipe(values) == load_recipe("sle-debug")
    with pytest.raises(ConfigError, match="did you mean 'latent-denoiser'"):
        build_recipe(values | {"kind": "latent-denoise"})
    with pytest.raises(ConfigError, match=r"model.token; did you mean 'tokens'|unknown key model.token"):
        load_recipe("sle-debug", ["model.token=4"])
    with pytest.raises(ConfigError, match="unknown key perceptual"):
        load_recipe("sle-debug", ["perceptual=none"])


def test_a_cache_is_no_tokenizer(cache: Path) -> None:
    with pytest.raises(ModelFileError, match="is a latent cache, no tokenizer"):
        open_tokenizer(cache)
