"""Autoencoders of diffusers as tokenizers, with tiny random ones of each class."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spheregen.errors import ConfigError, ModelFileError, SphereGenError
from spheregen.networks.diffusers_models import DCTokenizer, KLTokenizer, RAETokenizer, open_diffusers
from spheregen.protocol import Tokenizer
from tests.random_networks import import_or_skip, random_images, shake

CLASSES: dict[str, Any] = {"AutoencoderKL": KLTokenizer, "AutoencoderDC": DCTokenizer, "AutoencoderRAE": RAETokenizer}
SIZES = {"AutoencoderKL": 16, "AutoencoderDC": 16, "AutoencoderRAE": 64}
LATENTS = {"AutoencoderKL": (4, 8), "AutoencoderDC": (5, 4), "AutoencoderRAE": (64, 4)}  # c, h of images of that size


def build(name: str, **options: Any) -> Any:
    """A random autoencoder."""
    diffusers = import_or_skip("diffusers")
    if name == "AutoencoderKL":
        defaults: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "latent_channels": 4,
            "scaling_factor": 0.36,
            "shift_factor": 0.12,
        }
    elif name == "AutoencoderDC":
        defaults = {
            "latent_channels": 5,
            "attention_head_dim": 4,
            "encoder_block_out_channels": (8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8),
            "encoder_layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), ()),
            "decoder_qkv_multiscales": ((), (), ()),
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_out_shortcut": False,
            "decoder_in_shortcut": False,
            "scaling_factor": 0.41,
        }
    else:
        import_or_skip("transformers")
        defaults = {
            "encoder_hidden_size": 64,
            "encoder_num_hidden_layers": 1,
            "encoder_input_size": 56,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 48,
            "latents_mean": torch.randn((64, 4, 4), generator=torch.Generator().manual_seed(1)),
            "latents_std": torch.rand((64, 4, 4), generator=torch.Generator().manual_seed(2)) + 0.5,
        }
    model = getattr(diffusers, name)(**{**defaults, **options})
    shake(model, std=0.1)
    return model.eval()


def expected(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (B, c, h, w) and their decoded images, by the formulas of the pipelines of diffusers."""
    name, config = type(model).__name__, model.config
    with torch.no_grad():
        if name == "AutoencoderKL":
            z = (model.encode(images).latent_dist.mean - config.shift_factor) * config.scaling_factor
            return z, model.decode(z / config.scaling_factor + config.shift_factor).sample.clamp(-1, 1)
        if name == "AutoencoderDC":
            z = model.encode(images).latent * config.scaling_factor
            return z, model.decode(z / config.scaling_factor).sample.clamp(-1, 1)
        z = model.encode((images + 1) / 2).latent
        return z, (2 * model.decode(z).sample - 1).clamp(-1, 1)


@pytest.mark.parametrize("name", CLASSES)
def test_they_answer_to_the_protocol(name: str) -> None:
    model, size, (channels, side) = build(name), SIZES[name], LATENTS[name]
    images = random_images(2, size)
    z, decoded = expected(model, images)
    assert z.shape == (2, channels, side, side)
    tokenizer = CLASSES[name](model, size)
    assert (tokenizer.image_shape, tokenizer.latent_shape) == ((3, size, size), (side**2, channels))
    assert tokenizer.dtype == torch.float32
    latents = tokenizer.encode(images)
    torch.testing.assert_close(latents, z.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokenizer.decode(latents), decoded, rtol=1e-4, atol=1e-5)
    assert decoded.abs().max() <= 1 and decoded.std() > 0.01
    assert not any(each.training for each in nn.ModuleList([tokenizer]).train()[0].modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert isinstance(tokenizer, Tokenizer)


@pytest.mark.parametrize("name", CLASSES)
def test_they_are_saved_and_opened_again(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = CLASSES[name](build(name), SIZES[name], pack=2)
    folder = tmp_path / "models" / "tokenizer"
    tokenizer.save(folder)
    tokenizer.save(folder)  # replaces itself
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "spheregen.json",
    ]
    capfd.readouterr()
    again = open_diffusers(folder)
    assert capfd.readouterr() == ("", "")
    assert type(again) is CLASSES[name]
    assert (again.latent_shape, again.image_shape) == (tokenizer.latent_shape, tokenizer.image_shape)
    images = random_images(1, SIZES[name])
    latents = tokenizer.encode(images)
    assert again.encode(images).equal(latents)
    assert again.decode(latents).equal(tokenizer.decode(latents))
    other = open_diffusers(tmp_path / "models", pack=1, subfolder="tokenizer").to(torch.bfloat16)
    assert (other.pack, other.dtype) == (1, torch.bfloat16)
    narrow = other.encode(images)
    assert narrow.dtype == other.decode(narrow).dtype == torch.float32
    close = CLASSES[name](tokenizer.model, SIZES[name]).encode(images)
    assert (narrow - close).std() < 0.1 * close.std()


def test_an_rae_that_was_written_with_another_transformers(tmp_path: Path) -> None:
    """Names of weights inside transformers changed; AutoencoderRAE of diffusers writes and wants those of the day."""
    from safetensors.torch import load_file, save_file

    tokenizer = RAETokenizer(build("AutoencoderRAE"), 64)
    tokenizer.save(tmp_path)
    images = random_images(1, 64)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    pairs = [("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")]
    for newer, older in [*pairs, ("o_proj", "output.dense")]:
        for before, after in [(newer, older), (older, newer)]:
            start = "encoder.encoder.layer.0.attention."
            renamed = {name.replace(f"{start}{before}.", f"{start}{after}."): value for name, value in state.items()}
            save_file(renamed, file, metadata={"format": "pt"})
            assert open_diffusers(tmp_path).encode(images).equal(tokenizer.encode(images))
    del state["encoder.encoder.layer.0.norm1.bias"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"lacks 1 tensors, such as encoder\.encoder\.layer\.0\.norm1\.bias"):
        open_diffusers(tmp_path)


# --- errors -----------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit() -> None:
    model = build("AutoencoderKL")
    with pytest.raises(ConfigError, match="multiple of 2 px, not 15"):
        KLTokenizer(model, 15)
    with pytest.raises(ConfigError, match="with pack 3 takes images of a multiple of 6 px, not 16"):
        KLTokenizer(model, 16, 3)
    with pytest.raises(ConfigError, match="choose another size or packing"):
        KLTokenizer(model, 16, 0)
    with pytest.raises(ConfigError, match="images of 64 px, not 32; leave image_size out"):
        RAETokenizer(build("AutoencoderRAE"), 32)
    tokenizer = KLTokenizer(model, 16)
    with pytest.raises(ValueError, match=r"takes \(B, 3, 16, 16\)"):
        tokenizer.encode(random_images(1, 8))
    with pytest.raises(ValueError, match=r"takes \(B, 64, 4\)"):
        tokenizer.decode(torch.zeros(1, 16, 4))


def test_what_diffusers_wrote_itself(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build("AutoencoderKL").save_pretrained(tmp_path / "vae")
        build("AutoencoderRAE").save_pretrained(tmp_path / "rae")
    with pytest.raises(ConfigError, match="takes images of many sizes; give image_size"):
        open_diffusers(tmp_path / "vae")
    assert open_diffusers(tmp_path / "vae", 32, 2).latent_shape == (64, 16)
    assert open_diffusers(tmp_path / "rae").image_shape == (3, 64, 64)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelFileError, match="is a whole pipeline; give the subfolder of its autoencoder"):
        open_diffusers(tmp_path)


def refused(folder: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        open_diffusers(folder, 16)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tokenizer = KLTokenizer(build("AutoencoderKL"), 16)
    tokenizer.save(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["decoder.conv_in.bias"]
    save_file(state, weights, metadata={"format": "pt"})
    assert "lacks 1 tensors, such as decoder.conv_in.bias" in refused(tmp_path)
    weights.unlink()
    torch.save(tokenizer.model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    assert "cannot be loaded" in refused(tmp_path)  # safetensors alone
    config = tmp_path / "config.json"
    record = tmp_path / "spheregen.json"
    record.write_text('{"image_size": "16"}')
    assert "something else than image_size and pack" in refused(tmp_path)
    config.write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    message = refused(tmp_path)
    assert "of class 'AutoencoderTiny'" in message
    assert "give one of AutoencoderKL, AutoencoderDC, AutoencoderRAE" in message
    config.unlink()
    assert "has no config.json" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "none")


@pytest.mark.parametrize(("package", "extra"), [("diffusers", "diffusers"), ("transformers", "encoders")])
def test_missing_packages_are_named(package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if package == "transformers":
        import_or_skip("diffusers")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderRAE"}')
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SphereGenError, match=rf'pip install "spheregen\[{extra}\]"') as caught:
        open_diffusers(tmp_path)
    assert "\n" not in str(caught.value)
