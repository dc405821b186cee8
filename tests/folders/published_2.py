"""Checkpoints of Sphere Encoder 2 in the published layout, made from our models.

The layout is written here a second time, from the names in the golden files and in the files of transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.family.sphere_encoder_2.config import SphereEncoder2Config
from spheregen.family.sphere_encoder_2.network import SphereEncoder2
from spheregen.networks.encoders import EncoderConfig
from spheregen.nn.sizes import TransformerSize

SIZE = TransformerSize(width=32, depth=2, heads=2, in_context_start=1)
DINO = {
    "model_type": "dinov3_vit",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 96,
    "hidden_act": "silu",
    "use_gated_mlp": True,
    "patch_size": 16,
    "num_register_tokens": 4,
    "image_size": 224,
}
"""A tiny DINOv3 of heads of 64 channels, as those that were published."""
INSIDE = {
    "attention_norm": "norm1", "mlp_norm": "norm2", "attention.qkv": "attn.qkv", "attention.out": "attn.proj",
    "attention.q_norm": "attn.q_norm", "attention.k_norm": "attn.k_norm", "mlp.gate_value": "mlp.w12",
    "mlp.out": "mlp.w3", "modulation.linear": "adaLN_modulation.1",
}  # fmt: skip
PARTS = {
    "encoder.patches.patches": "encoder.x_embedder.0", "encoder.patches.mix": "encoder.x_embedder.2",
    "encoder.project": "encoder.ffn.linear", "encoder.adapter.linear": "encoder.out",
    "decoder.embed": "decoder.x_embedder", "decoder.head.linear": "decoder.ffn.linear",
    "decoder.head.smooth": "decoder.out.2", "decoder.head.up": "decoder.out.4",
    "decoder.angle.inner": "decoder.alpha_embedder.mlp.0", "decoder.angle.outer": "decoder.alpha_embedder.mlp.2",
}  # fmt: skip
ENDS = {
    "trunk.labels.table": "y_embedder.embedding_table", "trunk.positions": "pos_embed", "trunk.context": "inctx_embed",
    "trunk.context_positions": "inctx_pos_embed", "output.norm": "ffn.norm",
    "output.modulation.linear": "ffn.adaLN_modulation.1",
}  # fmt: skip
PARTS |= {f"{part}.{ours}": f"{part}.{theirs}" for part in ("encoder", "decoder") for ours, theirs in ENDS.items()}
FROZEN = "encoder.frozen.network.net."


def model_of(*, frozen: bool = True, seed: int = 0, **options: Any) -> SphereEncoder2:
    """Return a tiny model with nothing left at zero: behind a frozen DINOv3, or with an encoder of its own."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {"image_size": 32, "decoder": SIZE, "num_classes": 5}
    if frozen:
        seen = EncoderConfig(kind="transformers", config=DINO, input_size=64, filter="bilinear", clamp=True)
        shared["pretrained"] = seen
    else:
        shared |= {"encoder": SIZE, "patch_size": 8, "latent_channels": 24}
    model = SphereEncoder2(SphereEncoder2Config(**{**shared, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def published_name(name: str) -> str:
    if name.startswith(FROZEN):
        return f"encoder.encoder.{name.removeprefix(FROZEN)}"
    if name in PARTS:
        return PARTS[name]
    module, _, leaf = name.rpartition(".")
    pieces = name.split(".")
    if pieces[1:3] == ["trunk", "blocks"]:
        return f"{pieces[0]}.blocks.{pieces[3]}.{INSIDE['.'.join(pieces[4:-1])]}.{leaf}"
    return f"{PARTS[module]}.{leaf}"


def published_state(model: SphereEncoder2) -> dict[str, Tensor]:
    state = {published_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if not name.endswith("mask_token")}


def training_options(model: SphereEncoder2) -> dict[str, Any]:
    """Return the training's cfg.json, as far as it is read, with some of what is not."""
    config = model.config
    heads = {"linear": "linear", "smooth": "linear+conv", "conv": "conv"}
    return {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "token_channels": 768,  # the encoder's width counts
        "latent_resolution": config.grid,
        "compression_ratio": 1.0,
        "num_classes": config.num_classes or 102,
        "cond_generator": config.num_classes > 0,
        "vit_enc_model_size": "base",
        "vit_dec_model_size": "mine",
        "sizes": {"mine": {"width": 32, "layers": 2, "heads": 2, "in_context_start": 1}},
        "halve_model_size": False,
        "in_context_size": config.in_context_tokens,
        "pixel_head_type": heads[config.pixel_head],
        "pixel_head_use_tanh": False,
        "spherify_model": False,
        "spherify_mode": "global",
        "use_angle_condition": True,
        "angle_condition_mode": config.angle_condition,
        "noise_sigma_max_angle": 90.0,
        "use_qk_norm": config.qk_norm,
        "load_pretrained_encoder": "dinov3-vits16plus-pretrain-lvd1689m",
        "pretrained_encoder_input_size": 64,
        "freeze_encoder": True,
        "lr": 1e-4,
        "sdpa_mode": "sdpa_fp32",
    }


def experiment(folder: Path, model: SphereEncoder2, raw: SphereEncoder2 | None = None) -> Path:
    """Write the folder of an experiment; returns it."""
    (folder / "ckpt").mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(training_options(model)))
    tables = {"decoder.rope": torch.randn(4, 8), "encoder.encoder.rope_embeddings.inv_freq": torch.randn(4)}
    content = {
        "model": published_state(raw or model),
        "ema_model": {f"module.{name}": each for name, each in {**published_state(model), **tables}.items()},
        "epoch": 1999,
        "score_match": {"real_score_nets.0.out.weight": torch.randn(3, 3)},
        "score_optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }
    torch.save(content, folder / "ckpt" / "ep1999.pth")
    return folder
