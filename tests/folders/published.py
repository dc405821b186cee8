"""Checkpoints in the published layout, made from our models, and what they must become again.

The layout is written here a second time, from the names in the golden files, beside the one that is tested.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spheregen.errors import SphereGenError
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.nn.sizes import TransformerSize
from tests.factories import tiny_autoencoder

SIZE = TransformerSize(width=16, depth=2, heads=2, in_context_start=1)
OTHER = TransformerSize(width=24, depth=3, heads=3, in_context_start=2)
INSIDE = {  # our names -> the published ones, in blocks and in mixers
    "attention_norm": "norm1", "mlp_norm": "norm2", "attention.qkv": "attn.qkv", "attention.out": "attn.proj",
    "mlp.gate_value": "mlp.w12", "mlp.out": "mlp.w3", "modulation.linear": "adaLN_modulation.1",
    "token_norm": "norm1", "channel_norm": "norm2", "token_mlp": "tok_mixer.mix", "channel_mlp": "chn_mixer.mix",
    "token_gain": "alpha1", "channel_gain": "alpha2", "norm": "norm",
}  # fmt: skip
PARTS = {
    "encoder.patches.patches": "encoder.x_embedder.0", "encoder.patches.mix": "encoder.x_embedder.1",
    "encoder.project": "encoder.ffn.linear", "decoder.head.linear": "decoder.ffn.linear",
    "decoder.head.smooth": "decoder.out.2", "decoder.head.up": "decoder.out.4",
}  # fmt: skip
ENDS = {
    "trunk.labels.table": "y_embedder.embedding_table", "trunk.positions": "pos_embed", "trunk.context": "inctx_embed",
    "trunk.context_positions": "inctx_pos_embed", "output.norm": "ffn.norm",
    "output.modulation.linear": "ffn.adaLN_modulation.1",
}  # fmt: skip
PARTS |= {f"{part}.{ours}": f"{part}.{theirs}" for part in ("encoder", "decoder") for ours, theirs in ENDS.items()}


def model_of(**options: Any) -> SphereAutoencoder:
    return tiny_autoencoder(**{"encoder": SIZE, "decoder": SIZE, "decoder_mixer_depth": 2, **options})


def published_name(name: str, config: AutoencoderConfig) -> str:
    module, _, leaf = name.rpartition(".")
    pieces = name.split(".")
    if pieces[1:3] == ["trunk", "blocks"]:
        return f"{pieces[0]}.blocks.{pieces[3]}.{INSIDE['.'.join(pieces[4:-1])]}.{leaf}"
    if pieces[1] == "mixer":
        start = "encoder.out" if pieces[0] == "encoder" else "decoder.x_embedder.1"
        index = 4 if pieces[2] == "blocks" else 2
        path = [*pieces[2:index], INSIDE[pieces[index]], *pieces[index + 1 :]]
        return ".".join([start, *path])
    if module == "decoder.embed":
        return f"decoder.x_embedder.{'0.' if config.decoder_mixer_depth else ''}{leaf}"
    return PARTS[name] if name in PARTS else f"{PARTS[module]}.{leaf}"


def published_state(model: SphereAutoencoder) -> dict[str, Tensor]:
    state = {published_name(name, model.config): tensor.clone() for name, tensor in model.state_dict().items()}
    state["encoder.x_embedder.1.weight"] = state["encoder.x_embedder.1.weight"][:, :, None, None].contiguous()
    return state


def published_config(model: SphereAutoencoder) -> dict[str, Any]:
    """The constructor's arguments, as golden folders hold them."""
    config = model.config
    return {
        "input_size": config.image_size,
        "patch_size": config.patch,
        "vit_enc_model_size": "mine",
        "vit_dec_model_size": "mine" if config.decoder == config.encoder else "other",
        "token_channels": config.channels,
        "num_classes": config.num_classes,
        "pixel_head_type": config.pixel_head,
        "vit_enc_latent_mlp_mixer_depth": config.encoder_mixer_depth,
        "vit_dec_latent_mlp_mixer_depth": config.decoder_mixer_depth,
        "affine_latent_mlp_mixer": config.mixer_affine,
        "in_context_size": config.in_context_tokens,
        "noise_sigma_max_angle": config.max_angle,
        "spherify_model": config.spherify_decoder_blocks,
        "sizes": {"mine": size_entry(config.encoder_size), "other": size_entry(config.decoder_size)},
    }


def size_entry(size: TransformerSize) -> dict[str, int]:
    entry = {"width": size.width, "layers": size.depth, "heads": size.heads}
    return entry | {"in_context_start": size.in_context_start}


def untold(model: SphereAutoencoder) -> dict[str, Any]:
    """The options that no shape tells."""
    config = model.config
    options: dict[str, Any] = {
        "noise_sigma_max_angle": config.max_angle,
        "vit_enc_heads": config.encoder_size.heads,
        "vit_dec_heads": config.decoder_size.heads,
    }
    if config.spherify_decoder_blocks:
        options["spherify_model"] = True
    if config.in_context_tokens:
        options["vit_enc_in_context_start"] = config.encoder_size.in_context_start
        options["vit_dec_in_context_start"] = config.decoder_size.in_context_start
    return options


def weight_file(folder: Path, model: SphereAutoencoder, name: str = "weights.safetensors") -> Path:
    """The weights alone, without a configuration."""
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(published_state(model), path)
    else:
        torch.save(published_state(model), path)
    return path


def write(folder: Path, model: SphereAutoencoder, state: dict[str, Tensor] | None = None, **options: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**published_config(model), **options}))
    save_file(published_state(model) if state is None else state, folder / "weights.safetensors")
    return folder


@torch.no_grad()
def assert_same(loaded: SphereAutoencoder, model: SphereAutoencoder) -> None:
    assert not loaded.training
    size = model.config.image_size
    images = torch.rand((3, 3, size, size), generator=torch.Generator().manual_seed(2)) * 2 - 1
    for labels in (None, torch.tensor([0, 1, 2])) if model.num_classes else (None,):
        v = model.encode(images, labels)
        assert torch.equal(loaded.encode(images, labels), v)
        assert torch.equal(loaded.decode(v, labels), model.decode(v, labels))
    assert model.decode(v).std() > 0.01
    assert loaded.alpha_max == model.alpha_max


def refuses(kind: type[SphereGenError] | tuple[type[SphereGenError], ...], call: Any, *reasons: str) -> str:
    """The message of the error that `call` raises: one line with all `reasons` in it."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for reason in reasons:
        assert reason in message
    return message
