"""Checkpoints of the published Sphere Encoder implementation, read into our model or converted to a model folder.

Understood: a folder or file with `.safetensors` or `.pth` weights (the latter a dictionary with `model`, `ema_model`
and `epoch`, or a bare state dictionary), under the names `encoder.*` and `decoder.*`, behind `module.` (DDP) and
`_orig_mod.` (compiled) prefixes; and a configuration with the constructor's names (`input_size`, `token_channels`, ...)
or the training options' (`image_size`, `cond_generator`, `compression_ratio`, ...), whole or in part: what the shapes
of the weights reveal need not be given. Nothing in a file is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.interop.sphere_encoder_files import (
    Checkpoint,
    find_weights,
    float32_weights,
    listed,
    read_checkpoint,
    read_options,
)
from spheregen.interop.sphere_encoder_shapes import KNOWN_OPTIONS, complete, override, read_shapes
from spheregen.model_folder import CARD, CONFIG, WEIGHTS, ModelInfo, save_model
from spheregen.models.autoencoder import AutoencoderConfig, SphereAutoencoder
from spheregen.models.sizes import SIZES, TransformerSize
from spheregen.nn.uninitialised import Uninitialised

ORIGIN = "published Sphere Encoder checkpoint, arXiv 2602.15030"
LICENCE = (
    "that of the checkpoint's origin, which this conversion does not change; the published Sphere Encoder code is for "
    "non-commercial use, so read the terms of the weights before you use or pass them on"
)
"""What a converted folder says of its licence where nobody states one."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Our names -> the published ones: first where a part sits, then what is inside a block or a mixer.
_RENAMES = (
    (r"^encoder\.patches\.patches\.", "encoder.x_embedder.0."),
    (r"^encoder\.patches\.mix\.", "encoder.x_embedder.1."),
    (r"^encoder\.mixer\.", "encoder.out."),
    (r"^encoder\.project\.", "encoder.ffn.linear."),
    (r"^decoder\.mixer\.", "decoder.x_embedder.1."),
    (r"^decoder\.head\.linear\.", "decoder.ffn.linear."),
    (r"^decoder\.head\.smooth\.", "decoder.out.2."),
    (r"^decoder\.head\.up\.", "decoder.out.4."),
    (r"\.trunk\.labels\.table\.", ".y_embedder.embedding_table."),
    (r"\.trunk\.positions$", ".pos_embed"),
    (r"\.trunk\.context$", ".inctx_embed"),
    (r"\.trunk\.context_positions$", ".inctx_pos_embed"),
    (r"\.output\.norm\.", ".ffn.norm."),
    (r"\.output\.modulation\.linear\.", ".ffn.adaLN_modulation.1."),
    (r"\.trunk\.blocks\.", ".blocks."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.mlp\.gate_value\.", ".mlp.w12."),
    (r"\.mlp\.out\.", ".mlp.w3."),
    (r"\.modulation\.linear\.", ".adaLN_modulation.1."),
    (r"\.token_norm\.", ".norm1."),
    (r"\.channel_norm\.", ".norm2."),
    (r"\.token_mlp\.", ".tok_mixer.mix."),
    (r"\.channel_mlp\.", ".chn_mixer.mix."),
    (r"\.token_gain$", ".alpha1"),
    (r"\.channel_gain$", ".alpha2"),
)
_CONV_1X1 = "encoder.x_embedder.1.weight"
"""Published as a 1x1 convolution; a linear here."""


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """What a conversion found and wrote."""

    folder: Path
    """The model folder."""
    config: AutoencoderConfig
    weights: str
    """`model`, `ema_model`, or `bare` for a file that is a state dictionary itself."""
    epoch: int | None
    """The epoch that the training checkpoint tells."""
    parameters: int
    """Numbers in the weights, the fixed position tables counted, as in `spheregen info`."""
    inferred: tuple[str, ...]
    """Published options that were not given and were read off the shapes."""
    assumed: Mapping[str, Any]
    """Published options that were not given, that shapes cannot tell, and the value that was taken."""


def load_sphere_encoder(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    ema: bool = False,
    options: Mapping[str, Any] | None = None,
) -> SphereAutoencoder:
    """Read a published checkpoint.

    Args:
        source: a folder (with one weight file and perhaps its configuration) or a weight file.
        config: the published configuration, whole or in part, as a mapping or a JSON file; by default `config.json` or
            `cfg.json` beside the weights, if there is one. What the shapes of the weights reveal need not be in it.
        ema: take `ema_model` of a training checkpoint instead of `model` (the published evaluation takes `model`).
        options: published options by name that complete or override the configuration, such as
            `{"noise_sigma_max_angle": 85}`; also `vit_enc_heads`, `vit_dec_heads`, `vit_enc_in_context_start` and
            `vit_dec_in_context_start` for sizes that were not published.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ModelFileError: missing, broken or foreign files; missing or unexpected weights are listed.
        ConfigError: options that contradict the weights or each other; or shapes cannot tell one and it is not given.
    """
    return _read(source, config, ema=ema, options=options).model


def convert_sphere_encoder(
    source: str | Path,
    out: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    ema: bool = False,
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    sampling: Mapping[str, Any] | None = None,
    licence: str | None = None,
    dtype: str = "float32",
) -> ConvertedModel:
    """Write a published checkpoint as a model folder.

    Args:
        source, config, ema, options: see `load_sphere_encoder`.
        out: the folder; it must not hold a model yet.
        class_names: one for each class, in the order of the ids; none leaves the classes without names.
        sampling: sampling defaults: steps, schedule, guidance, guidance_at, share_noise.
        licence: the licence of the weights, an SPDX id or words; by default a plain statement that it is that of the
            checkpoint's origin.
        dtype: the type the weights are written in, `float32` or `bfloat16`.

    Raises:
        ModelFileError: see `load_sphere_encoder`.
        ConfigError: see `load_sphere_encoder`; or `out` holds a model, or `class_names` do not fit.
        SphereGenError: the folder cannot be written to.
    """
    folder = Path(out)
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use {' or '.join(DTYPES)}")
    taken = next((name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).exists()), None)
    if taken is not None:
        raise ConfigError(f"{folder} holds a {taken} already, which would be lost; choose another folder (--out)")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output path {folder} is a file; choose a folder with --out")
    found = _read(source, config, ema=ema, options=options)
    model, checkpoint = found.model, found.checkpoint
    if len(class_names) not in (0, model.num_classes):
        raise ConfigError(
            f"{len(class_names)} class names for a model of {model.num_classes} classes; give one for each, in the "
            "order of the ids, or none"
        )
    kind = {"model": ", raw weights", "ema_model": ", EMA weights", "bare": ""}[checkpoint.weights]
    epoch = "" if checkpoint.epoch is None else f", epoch {checkpoint.epoch}"
    info = ModelInfo(
        class_names=tuple(class_names),
        sampling=dict(sampling or {}),
        provenance={
            "source": f"{checkpoint.path.name} ({ORIGIN}{kind}{epoch})",
            "license": " ".join(licence.split()) if licence and licence.strip() else LICENCE,
        },
    )
    save_model(folder, model.to(DTYPES[dtype]), info)
    return ConvertedModel(
        folder=folder,
        config=model.config,
        weights=checkpoint.weights,
        epoch=checkpoint.epoch,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        inferred=found.inferred,
        assumed=found.assumed,
    )


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


@dataclass(frozen=True)
class _Found:
    model: SphereAutoencoder
    checkpoint: Checkpoint
    inferred: tuple[str, ...]
    assumed: Mapping[str, Any]


def _read(
    source: str | Path,
    config: str | Path | Mapping[str, Any] | None,
    *,
    ema: bool,
    options: Mapping[str, Any] | None,
) -> _Found:
    path = find_weights(Path(source))
    read = read_options(config, path.parent)
    if config is not None and read and not read.keys() & set(KNOWN_OPTIONS):
        raise ConfigError("the configuration holds no option of a Sphere Encoder; give the training's cfg.json")
    given = override(read or {}, options or {})
    checkpoint = read_checkpoint(path, ema=ema)
    shapes = read_shapes({name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}, path.name)
    completed, inferred = complete(given, shapes, path.name)
    model_config = autoencoder_config(completed)
    with torch.device("meta"):
        model = SphereAutoencoder(model_config)
    state = _fit(model, float32_weights(checkpoint.state, path.name), path.name)
    with Uninitialised():
        model = SphereAutoencoder(model_config)
    model.load_state_dict(state, strict=True)
    unsaid = {"spherify_model": False} if given.get("spherify_model") is None else {}
    return _Found(model.eval(), checkpoint, inferred, unsaid)


def _fit(model: SphereAutoencoder, state: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The weights of a file under our names and in our shapes.

    Raises:
        ModelFileError: names or shapes differ; they are listed as the file has them.
    """
    fitted, missing, wrong = {}, [], []
    expected = {_published_name(name, model.config): (name, value.shape) for name, value in model.state_dict().items()}
    for published, (name, shape) in expected.items():
        tensor = state.get(published)
        if tensor is None:
            missing.append(published)
            continue
        if published == _CONV_1X1 and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)
        elif tensor.ndim == 0 and shape == (1,):
            tensor = tensor.reshape(1)
        if tensor.shape != shape:
            shown = (*shape, 1, 1) if published == _CONV_1X1 else tuple(shape)
            wrong.append(f"{published} {tuple(tensor.shape)} instead of {shown}")
        fitted[name] = tensor
    extra = sorted(state.keys() - expected.keys())
    problems = [
        f"{title}: {listed(names)}"
        for title, names in (("missing", sorted(missing)), ("unexpected", extra), ("other shape", sorted(wrong)))
        if names
    ]
    if problems:
        raise ModelFileError(
            f"the weights of {file} do not make a whole Sphere Encoder; {'; '.join(problems)}; get the file again, as "
            "the training saved it"
        )
    return fitted


def _published_name(name: str, config: AutoencoderConfig) -> str:
    if name.startswith("decoder.embed."):
        return name.replace("decoder.embed.", f"decoder.x_embedder.{'0.' if config.decoder_mixer_depth else ''}")
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
