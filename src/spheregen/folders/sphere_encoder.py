"""Checkpoints of the published Sphere Encoder implementation, read into our model or converted to a model folder.

A checkpoint is a folder or file with `.safetensors` or `.pth` weights (the latter a dictionary with `model`,
`ema_model` and `epoch`, or a bare state dictionary), under the names `encoder.*` and `decoder.*`, perhaps behind
`module.` (DDP) and `_orig_mod.` (compiled); and the training's `cfg.json`, or the constructor's arguments as
`config.json`.
Options that are left out are read off the shapes of the weights, where those tell them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spheregen.devices import own_defaults
from spheregen.errors import ConfigError, ModelFileError
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.folders.card import ModelInfo
from spheregen.folders.model_folder import save_model
from spheregen.folders.published import (
    DTYPES,
    SAME_MEANING,
    TRUNK_NAMES,
    ConvertedModel,
    PublishedOptions,
    blocks_at,
    check_class_names,
    check_target,
    find_weights,
    override,
    read_checkpoint,
    read_options,
    refuse_ours,
    told_by,
    transformer,
    untold,
)
from spheregen.networks.backbones.state import listed, load_renamed
from spheregen.nn.uninitialised import Uninitialised, weightless
from spheregen.tensors import check_finite

ORIGIN = "published Sphere Encoder checkpoint, arXiv 2602.15030"
LICENCE = (  # of a converted folder where nobody states one
    "that of the checkpoint's origin, which this conversion does not change; the published Sphere Encoder code is for "
    "non-commercial use, so read the terms of the weights before you use or pass them on"
)
_NEVER_WEIGHTS = re.compile(r"(encoder|decoder)\.(inctx_)?rope")  # tables of `ema_model` that the configuration tells
_MIXER_NORMS = {"encoder.out.norm.weight", "decoder.x_embedder.1.norm.weight"}
_CONV_1X1 = "encoder.x_embedder.1.weight"  # published as a 1x1 convolution; a linear here

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
    *TRUNK_NAMES,
    (r"\.token_norm\.", ".norm1."),
    (r"\.channel_norm\.", ".norm2."),
    (r"\.token_mlp\.", ".tok_mixer.mix."),
    (r"\.channel_mlp\.", ".chn_mixer.mix."),
    (r"\.token_gain$", ".alpha1"),
    (r"\.channel_gain$", ".alpha2"),
)


@own_defaults()
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
        config: the published configuration, as a mapping or a JSON file; by default `config.json` or `cfg.json` beside
            the weights, if there is one. What the shapes of the weights tell need not be in it.
        ema: take `ema_model` of a training checkpoint instead of `model` (the published evaluation takes `model`).
        options: published options by name that complete or override the configuration, see `PublishedOptions`.

    Returns:
        The model in float32 and evaluation mode.

    Raises:
        ModelFileError: missing, broken or foreign files, or options that do not fit the weights; missing, unexpected
            and misshapen weights are listed.
        ConfigError: impossible options; or an option is not given that the weights do not tell.
    """
    return _read(source, config, ema, options)[0]


@own_defaults()
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
    check_target(folder, dtype)
    model, found = _read(source, config, ema, options)
    check_class_names(class_names, model.num_classes)
    info = ModelInfo(
        class_names=tuple(class_names),
        sampling=dict(sampling or {}),
        provenance={
            "source": found.source(ORIGIN),
            "license": " ".join((licence or "").split()) or LICENCE,
        },
    )
    save_model(folder, model.to(DTYPES[dtype]), info)
    return dataclasses.replace(found, folder=folder)


def _read(
    source: str | Path, config: str | Path | Mapping[str, Any] | None, ema: bool, options: Mapping[str, Any] | None
) -> tuple[SphereAutoencoder, ConvertedModel]:
    """Return the model, and what was found; the folder is that of the checkpoint."""
    file = find_weights(Path(source))
    given = override(read_options(config, file.parent), options or {}, PublishedOptions)
    state, weights, epoch = read_checkpoint(file, ema, ignored=_NEVER_WEIGHTS)
    revealed = _options_of_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, file)
    model_config = _autoencoder_config(given, revealed, file)
    with weightless():
        expected = SphereAutoencoder(model_config).state_dict()
    names = {name: _published_name(name, model_config) for name in expected}
    for mine, theirs in names.items():
        tensor = state.get(theirs)
        if tensor is not None and tensor.numel() == expected[mine].numel() and (theirs == _CONV_1X1 or not tensor.ndim):
            state[theirs] = tensor.reshape(expected[mine].shape)  # a 1x1 convolution, a gain without an axis
    with Uninitialised():
        model = SphereAutoencoder(model_config)
    load_renamed(model, state, names, f"{file} with these options")
    check_finite(file, {names[name]: tensor for name, tensor in model.state_dict().items()})
    told = {name for name, value in given if value is not None}
    told |= {name for name, other in SAME_MEANING if other in told}
    return model.eval(), ConvertedModel(
        folder=file.parent,
        file=file.name,
        config=model_config,
        weights=weights,
        epoch=epoch,
        parameters=sum(tensor.numel() for tensor in expected.values()),
        inferred=tuple(name for name in revealed if name not in told),
        assumed={} if "spherify_model" in told else {"spherify_model": False},
    )


# options


def _options_of_shapes(shapes: Mapping[str, tuple[int, ...]], file: Path) -> dict[str, Any]:
    """Return the options that the shapes of the weights tell: all but the noise angle, whether the decoder spherifies
    its tokens, and the heads and in-context start of a size that was not published. Sizes are (width, blocks)."""
    refuse_ours(shapes, file)
    blocks = partial(blocks_at, shapes)
    try:
        _, tokens, _ = shapes["encoder.pos_embed"]
        patch = shapes["encoder.x_embedder.0.weight"][2]
        classes = shapes.get("encoder.y_embedder.embedding_table.weight", (1,))[0] - 1  # the last row is the null class
        mixers = blocks("encoder.out.blocks."), blocks("decoder.x_embedder.1.blocks.")
        return {
            "input_size": math.isqrt(tokens) * patch,
            "patch_size": patch,
            "token_channels": shapes["encoder.ffn.linear.weight"][0],
            "num_classes": classes,
            "pixel_head_type": "conv" if "decoder.out.4.weight" in shapes else "linear",
            "in_context_size": shapes.get("encoder.inctx_pos_embed", (1, 0))[1],
            "vit_enc_latent_mlp_mixer_depth": mixers[0],
            "vit_dec_latent_mlp_mixer_depth": mixers[1],
            "affine_latent_mlp_mixer": bool(shapes.keys() & _MIXER_NORMS) or not any(mixers),
            "vit_enc_model_size": (shapes["encoder.pos_embed"][2], blocks("encoder.blocks.")),
            "vit_dec_model_size": (shapes["decoder.pos_embed"][2], blocks("decoder.blocks.")),
        }
    except (KeyError, IndexError, ValueError) as error:
        lacking = error.args[0] if isinstance(error, KeyError) else "shapes that fit"
        raise ModelFileError(
            f"{file} holds no whole Sphere Encoder: it lacks {lacking}; its keys are {listed(shapes) or 'none'}"
        ) from error


def _autoencoder_config(given: PublishedOptions, revealed: Mapping[str, Any], file: Path) -> AutoencoderConfig:
    """Return our configuration from the options that are given and, where they are not, those of the shapes."""
    told = told_by(given, revealed)
    if not (revealed["vit_enc_latent_mlp_mixer_depth"] or revealed["vit_dec_latent_mlp_mixer_depth"]):
        told.pop("affine_latent_mlp_mixer", None)  # there is no mixer to have a gain
    values = {name: told.get(name, value) for name, value in revealed.items()}
    wrong = [
        f"{name} is {value} but the weights show {revealed[name]}"
        for name, value in values.items()
        if value != revealed[name] and not name.endswith("model_size")  # sizes are names here and numbers there
    ]
    if wrong:
        raise ConfigError(f"the configuration does not fit {file.name}: {'; '.join(wrong)}; correct it or leave it out")
    lacking = [] if "noise_sigma_max_angle" in told else ["noise_sigma_max_angle (degrees, such as 85)"]
    encoder, decoder = (
        transformer(given, prefix, revealed[f"{prefix}_model_size"], values["in_context_size"] > 0, lacking)
        for prefix in ("vit_enc", "vit_dec")
    )
    if lacking or encoder is None or decoder is None:
        raise untold(lacking, file)
    ratio = told.get("compression_ratio") if "token_channels" not in told else None
    return AutoencoderConfig(
        image_size=values["input_size"],
        patch_size=values["patch_size"],
        encoder=encoder,
        decoder=decoder,
        latent_channels=values["token_channels"] if ratio is None else None,
        compression=ratio,
        num_classes=values["num_classes"],
        encoder_mixer_depth=values["vit_enc_latent_mlp_mixer_depth"],
        decoder_mixer_depth=values["vit_dec_latent_mlp_mixer_depth"],
        mixer_affine=values["affine_latent_mlp_mixer"],
        pixel_head=values["pixel_head_type"],
        in_context_tokens=values["in_context_size"],
        spherify_decoder_blocks=told.get("spherify_model", False),
        max_angle=told["noise_sigma_max_angle"],
    )


def _published_name(name: str, config: AutoencoderConfig) -> str:
    if name.startswith("decoder.embed."):
        return name.replace("decoder.embed.", f"decoder.x_embedder.{'0.' if config.decoder_mixer_depth else ''}")
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
