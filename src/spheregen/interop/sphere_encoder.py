"""Checkpoints of the published Sphere Encoder implementation, read into our model.

Understood: a folder or file with `.safetensors` or `.pth` weights (the latter a dictionary with `model`, `ema_model`
and `epoch`, or a bare state dictionary), under the names `encoder.*` and `decoder.*`, behind `module.` (DDP) and
`_orig_mod.` (compiled) prefixes; and a configuration with the constructor's names (`input_size`, `token_channels`, ...)
or the training options' (`image_size`, `cond_generator`, `compression_ratio`, ...). Nothing in a file is executed.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import SIZES, TransformerSize
from spheregen.nn.uninitialised import Uninitialised

# Published names -> ours: first where a part sits, then what is inside a block or a mixer.
_RENAMES = (
    (r"^encoder\.x_embedder\.0\.", "encoder.patches.patches."),
    (r"^encoder\.x_embedder\.1\.", "encoder.patches.mix."),
    (r"^decoder\.x_embedder\.0\.", "decoder.embed."),
    (r"^decoder\.x_embedder\.1\.", "decoder.mixer."),
    (r"^decoder\.x_embedder\.(weight|bias)$", r"decoder.embed.\1"),
    (r"^(encoder|decoder)\.y_embedder\.embedding_table\.", r"\1.trunk.labels.table."),
    (r"^(encoder|decoder)\.pos_embed$", r"\1.trunk.positions"),
    (r"^(encoder|decoder)\.inctx_embed$", r"\1.trunk.context"),
    (r"^(encoder|decoder)\.inctx_pos_embed$", r"\1.trunk.context_positions"),
    (r"^(encoder|decoder)\.blocks\.", r"\1.trunk.blocks."),
    (r"^encoder\.ffn\.linear\.", "encoder.project."),
    (r"^decoder\.ffn\.linear\.", "decoder.head.linear."),
    (r"^(encoder|decoder)\.ffn\.norm\.", r"\1.output.norm."),
    (r"^(encoder|decoder)\.ffn\.adaLN_modulation\.1\.", r"\1.output.modulation.linear."),
    (r"^encoder\.out\.", "encoder.mixer."),
    (r"^decoder\.out\.2\.", "decoder.head.smooth."),
    (r"^decoder\.out\.4\.", "decoder.head.up."),
)
_BLOCK_RENAMES = (
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.mlp\.w12\.", ".mlp.gate_value."),
    (r"\.mlp\.w3\.", ".mlp.out."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
)
_MIXER_RENAMES = (
    (r"\.norm1\.", ".token_norm."),
    (r"\.norm2\.", ".channel_norm."),
    (r"\.tok_mixer\.mix\.", ".token_mlp."),
    (r"\.chn_mixer\.mix\.", ".channel_mlp."),
    (r"\.alpha1$", ".token_gain"),
    (r"\.alpha2$", ".channel_gain"),
)
_FIXED_TABLES = re.compile(r"^(encoder|decoder)\.(inctx_)?rope$")


def load_sphere_encoder(
    source: str | Path, config: str | Path | Mapping[str, Any] | None = None, *, ema: bool = False
) -> SphereAutoencoder:
    """Read a published checkpoint.

    Args:
        source: a folder (with its configuration and one weight file) or a weight file.
        config: the configuration as a mapping or a JSON file; by default `config.json` or `cfg.json` beside the
            weights.
        ema: take `ema_model` of a training checkpoint instead of `model` (the published evaluation takes `model`).

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ModelFileError: missing, broken or foreign files; missing or unexpected weights are listed.
        ConfigError: a configuration that lacks a field or asks for what does not exist.
    """
    path = Path(source)
    weights_path = _find_weights(path)
    options = _read_config(config, weights_path.parent)
    state = _rename(_read_weights(weights_path, ema=ema))
    model_config = autoencoder_config(options)
    with torch.device("meta"):
        model = SphereAutoencoder(model_config)
    _check_keys(model, state, weights_path)
    with Uninitialised():
        model = SphereAutoencoder(model_config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    return model.eval()


def autoencoder_config(options: Mapping[str, Any]) -> AutoencoderConfig:
    """Our configuration from the published one: the constructor's names or the training options'."""

    def read(*names: str, default: Any = None) -> Any:
        for name in names:
            if options.get(name) is not None:
                return options[name]
        if default is None:
            raise ConfigError(f"the published configuration lacks {' or '.join(names)}; add it to the configuration")
        return default

    conditional = options.get("cond_generator", True)
    num_classes = int(options.get("num_classes") or 0) if conditional else 0
    image_size = int(read("input_size", "image_size"))
    grid = options.get("latent_resolution")  # in training options this is the grid size
    patch_size = image_size // int(grid) if options.get("patch_size") is None and grid else int(read("patch_size"))
    compression = options.get("compression_ratio")
    latent_channels = options.get("token_channels")
    if latent_channels is None and compression is None:
        raise ConfigError("the published configuration lacks token_channels; add it to the configuration")
    sizes = options.get("sizes") or {}
    halve = bool(options.get("halve_model_size"))
    return AutoencoderConfig(
        image_size=image_size,
        patch_size=patch_size,
        encoder=_size(str(read("vit_enc_model_size")), sizes, halve=halve),
        decoder=_size(str(read("vit_dec_model_size")), sizes, halve=halve),
        latent_channels=None if latent_channels is None else int(latent_channels),
        compression=float(compression) if latent_channels is None and compression is not None else None,
        num_classes=num_classes,
        encoder_mixer_depth=int(read("vit_enc_latent_mlp_mixer_depth")),
        decoder_mixer_depth=int(read("vit_dec_latent_mlp_mixer_depth")),
        mixer_affine=bool(options.get("affine_latent_mlp_mixer", True)),
        pixel_head=read("pixel_head_type"),
        in_context_tokens=int(options.get("in_context_size") or 0),
        spherify_decoder_blocks=bool(options.get("spherify_model")),
        max_angle=float(read("noise_sigma_max_angle")),
    )


def _size(name: str, sizes: Mapping[str, Any], *, halve: bool) -> str | TransformerSize:
    if name in sizes:
        given = sizes[name]
        lacking = [key for key in ("width", "layers", "heads") if key not in given]
        if lacking:
            raise ConfigError(f"the published configuration's size {name!r} lacks {', '.join(lacking)}; add it")
        size = TransformerSize(
            width=given["width"],
            depth=given["layers"],
            heads=given["heads"],
            in_context_start=given.get("in_context_start", 0),
        )
    elif name in SIZES:
        if not halve:
            return name
        size = SIZES[name]
    else:
        raise ConfigError(f"unknown model size {name!r} in the published configuration; known: {', '.join(SIZES)}")
    if not halve:
        return size
    return TransformerSize(
        width=size.width, depth=size.depth // 2, heads=size.heads, in_context_start=size.in_context_start
    )


def _find_weights(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelFileError(f"no checkpoint at {path}: give a folder or a .safetensors or .pth file")
    found = sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
    found = [file for file in found if file.name != "io.safetensors"]  # golden folders keep inputs and outputs there
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ModelFileError(f"{path} must hold one weight file (.safetensors or .pth), found {names}; name the file")
    return found[0]


def _read_config(config: str | Path | Mapping[str, Any] | None, folder: Path) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if config is None:
        candidates = [folder / "config.json", folder / "cfg.json"]
        path = next((file for file in candidates if file.is_file()), None)
        if path is None:
            raise ModelFileError(f"no config.json or cfg.json in {folder}; pass the published configuration")
    else:
        path = Path(config)
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(options, dict):
        raise ModelFileError(f"{path} is not a JSON object of options")
    return options


def _read_weights(path: Path, *, ema: bool) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"cannot read weights from {path}: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        chosen = "ema_model" if ema else "model"
        if not isinstance(state.get(chosen), dict):
            raise ModelFileError(f"{path} holds no {chosen}; choose the other weights")
        state = state[chosen]
    elif ema:
        raise ModelFileError(f"{path} is a bare state dictionary without EMA weights; load it without ema")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelFileError(f"{path} is not a Sphere Encoder checkpoint: no state dictionary of tensors in it")
    return state


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to ours; fixed rotary tables are dropped, scalars get their axis."""
    renamed = {}
    for published, tensor in state.items():
        name = re.sub(r"\b(_orig_mod|module)\.", "", published)
        if _FIXED_TABLES.match(name):
            continue
        name = _rewrite(name, _RENAMES)
        name = _rewrite(name, _MIXER_RENAMES if ".mixer." in name else _BLOCK_RENAMES)
        if name.endswith("_gain") and tensor.ndim == 0:
            tensor = tensor.reshape(1)
        if name == "encoder.patches.mix.weight":
            tensor = tensor.flatten(1)  # published as a 1x1 convolution
        renamed[name] = tensor
    return renamed


def _rewrite(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _check_keys(model: SphereAutoencoder, state: Mapping[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    wrong = sorted(
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    )
    problems = [
        f"{title}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for title, names in (("missing", missing), ("unexpected", extra), ("other shape", wrong))
        if names
    ]
    if problems:
        raise ModelFileError(f"the weights of {path.name} do not fit the configuration; {'; '.join(problems)}")
