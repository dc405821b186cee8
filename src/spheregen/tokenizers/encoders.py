"""Frozen image encoders: representations that others learned, or our small FeatureNet, as tokens on a grid.

Source: Zheng et al. 2025, "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690): patch tokens
alone, after the last LayerNorm without its gain and shift.
Legend: B samples, C image channels, S image size, N = grid^2 tokens in row-major order, d channels of a token.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, check_choices
from spheregen.external import import_package, locate, quiet, read_json, reason
from spheregen.nn.backbones.feature_net import MIN_SIZE, WIDTHS, FeatureNet, load_feature_net
from spheregen.sphere import upcast
from spheregen.tokenizers.normaliser import Normaliser

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which network sees the images, and how they are brought to it.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic when a recipe holds this class

    kind: Literal["feature_net", "transformers"]
    """Our own small network, or one of the package transformers."""
    stage: int | None = None
    """feature_net: which output. 1: a token per pixel, 16 channels; 2: per 2x2 pixels, 48; 3: per 4x4, 96; 4: per 8x8,
    160."""
    source: str | None = None
    """transformers: a folder with config.json and safetensors, or user/name[@revision] on the Hub. feature_net: a file
    in place of the one that comes with the package."""
    config: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    """transformers: the architecture as in its config.json. An encoder that was built has it filled in, so that it can
    be built again without its source."""
    input_size: int | None = None
    """Images are resized to this many pixels (bicubic); None leaves them as they are."""
    antialias: bool = True
    """True: as Pillow resizes, with a filter as wide as the reduction. False: PyTorch's bicubic filter without, as the
    published RAE has it."""
    mean: tuple[float, float, float] | None = None
    """transformers: of the input in [0, 1]. None: what networks of its kind were trained with (ImageNet's; CLIP's own;
    0.5 for SigLIP and ViT)."""
    std: tuple[float, float, float] | None = None
    """transformers: likewise."""

    def __post_init__(self) -> None:
        check_choices(self, prefix="encoder ")
        if self.input_size is not None and self.input_size < 1:
            raise ConfigError(f"input_size is a number of pixels, not {self.input_size}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std belong together; give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std is positive, not {self.std}")
        if self.kind == "feature_net":
            if self.stage not in range(1, len(WIDTHS) + 1):
                raise ConfigError(f"stage of a feature_net is 1 to {len(WIDTHS)}, not {self.stage}; 3 suits 32 px")
            if self.config is not None or self.mean is not None:
                raise ConfigError("a feature_net has its own architecture, mean and std; leave config, mean, std out")
        elif self.stage is not None:
            raise ConfigError("stage is of a feature_net; leave it out for transformers")
        elif self.source is None and self.config is None:
            raise ConfigError("an encoder of transformers needs a source: a folder or user/name on the Hub")


class Frozen(nn.Module):
    """A module that is never trained: always in evaluation mode, also where the module that holds it trains."""

    def freeze(self) -> Self:
        """To be called when everything is built."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


def check_shape(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """That `x` is a batch of this shape.

    Raises:
        ValueError: it is not.
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{what} have shape {tuple(x.shape)}; this tokenizer takes (B, {', '.join(map(str, shape))})")


class FrozenEncoder(Frozen):
    """Images (B, C, S, S) in [-1, 1] to patch tokens (B, N, d), float32 or wider; built by `build_encoder`.

    Gradients reach the images, never the weights.
    """

    def __init__(self, config: EncoderConfig, network: FeatureNetTokens | TransformerTokens) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.freeze()

    @property
    def channels(self) -> int:
        """Channels d of a token."""
        return self.network.channels

    @property
    def drop_tokens(self) -> int:
        """Tokens in front of those of the patches, class and registers, that the network has and nobody sees."""
        return self.network.drop_tokens

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the network computes."""
        return next(self.network.parameters()).dtype

    def grid_of(self, image_size: int) -> int:
        """Tokens along one side for images of this size.

        Raises:
            ConfigError: the network cannot see images of this size.
        """
        size, patch = self.config.input_size or image_size, self.network.patch
        if size < self.network.smallest or size % patch:
            raise ConfigError(
                f"the encoder takes images of a multiple of {patch} px, at least {self.network.smallest}, not {size}; "
                "set its input_size to one, and they are resized"
            )
        return size // patch

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
            raise ConfigError(f"an encoder takes images of shape (B, 1 or 3, S, S), not {tuple(images.shape)}")
        self.grid_of(images.shape[2])
        x = (upcast(images).expand(-1, 3, -1, -1) + 1) / 2
        if self.config.input_size is not None:
            x = resized(x, self.config.input_size, antialias=self.config.antialias)
        return upcast(self.network(x))


def resized(images: Tensor, size: int, *, antialias: bool) -> Tensor:
    """Square images (B, C, S, S) to (B, C, size, size), bicubic; see `EncoderConfig.antialias`. Nothing is clamped."""
    if images.shape[2] == size:
        return images
    # Apple's GPU lacks the antialiased filter
    x = images.cpu() if antialias and images.device.type == "mps" else images
    x = functional.interpolate(x, size=(size, size), mode="bicubic", antialias=antialias, align_corners=False)
    return x.to(images.device)


def build_encoder(config: EncoderConfig, *, pretrained: bool) -> FrozenEncoder:
    """A frozen encoder, float32, on the CPU; its `config` has everything filled in that was read or derived.

    Args:
        pretrained: load the weights from the source. False: the architecture alone, for a state dictionary to fill.

    Raises:
        SphereGenError: transformers is not installed.
        ModelFileError: the source is missing, out of reach, incomplete, or no network that is known here.
        ConfigError: pretrained without a source, or neither source nor architecture are known.
    """
    if config.kind == "feature_net":
        assert config.stage is not None
        net = load_feature_net(config.source) if pretrained else FeatureNet()
        return FrozenEncoder(config, FeatureNetTokens(net, config.stage))
    if config.source is None and pretrained:
        raise ConfigError("there is nothing to load an encoder from; set its source, or give its weights")
    if config.config is None and not pretrained:
        raise ConfigError("the architecture of the encoder is not known; set its config, or load it from its source")
    return _build_transformer(config, pretrained=pretrained)


class FeatureNetTokens(nn.Module):
    """One output of FeatureNet for images (B, 3, S, S) in [0, 1], as tokens (B, N, d). Later stages are cut off."""

    def __init__(self, net: FeatureNet, stage: int) -> None:
        super().__init__()
        self.channels, self.patch = WIDTHS[stage - 1], 2 ** (stage - 1)
        self.smallest, self.drop_tokens = MIN_SIZE, 0
        net.stages = net.stages[:stage]
        del net.classifier
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.net.features(images.to(next(self.net.parameters()).dtype))[-1]
        return maps.flatten(2).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class TransformerKind:
    """How networks of one `model_type` of transformers are built and used."""

    name: str
    """Its classes: `{name}Model` and `{name}Config`."""
    norm: str
    """The last LayerNorm."""
    class_token: bool = True
    interpolates: bool = False
    """Takes images of another size than it was trained with if it is told to (others do so by themselves)."""
    input: tuple[tuple[float, float, float], tuple[float, float, float]] = (IMAGENET_MEAN, IMAGENET_STD)
    """Mean and deviation that it was trained with."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the class, so that what pools the tokens is left out."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the configuration, likewise."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of its weights' names that newer versions of transformers changed, and what they are called in files."""

    def published_name(self, name: str) -> str:
        """What a weight is called in the files of the Hub, whatever this version of transformers calls it."""
        for pattern, original in self.renamed:
            name = re.sub(pattern, original, name)
        return name


_ATTENTION = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_VIT = (
    *_ATTENTION,
    (r"^layers\.", "encoder.layer."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_SIGLIP = TransformerKind(
    name="SiglipVision",
    norm="post_layernorm",
    class_token=False,
    interpolates=True,
    input=_HALF,
    settings={"vision_use_head": False},
)
_CLIP_VISION = TransformerKind(name="CLIPVision", norm="post_layernorm", interpolates=True, input=_CLIP)
KINDS: Mapping[str, TransformerKind] = {
    "dinov2": TransformerKind(name="Dinov2", norm="layernorm", renamed=_ATTENTION),
    "dinov2_with_registers": TransformerKind(name="Dinov2WithRegisters", norm="layernorm", renamed=_ATTENTION),
    "dinov3_vit": TransformerKind(name="DINOv3ViT", norm="norm", renamed=((r"^model\.", ""),)),
    "vit": TransformerKind(
        name="ViT",
        norm="layernorm",
        interpolates=True,
        input=_HALF,
        arguments={"add_pooling_layer": False},
        renamed=_VIT,
    ),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "clip": _CLIP_VISION,
    "clip_vision_model": _CLIP_VISION,
}
"""By the `model_type` of config.json. What fits a row needs no more than that row."""


class TransformerTokens(nn.Module):
    """The patch tokens of a network of transformers, for images (B, 3, S, S) in [0, 1], after a LayerNorm without gain
    and shift, (B, N, d). It stands in for the network's last norm, which CLIP gives its class token alone.

    In a state dictionary the weights have the names of the Hub's files, since those inside transformers change: what
    is saved with one version can be read with another.
    """

    def __init__(self, net: nn.Module, kind: TransformerKind, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        config: Any = net.config
        net = getattr(net, "vision_model", net)  # in older versions of transformers it lies one deeper
        self.channels, self.patch = int(config.hidden_size), int(config.patch_size)
        self.smallest = self.patch
        self.drop_tokens = int(kind.class_token) + int(getattr(config, "num_register_tokens", 0))
        self._options = {"interpolate_pos_encoding": True} if kind.interpolates else {}
        self._eps = float(config.layer_norm_eps)
        self.input = Normaliser(torch.tensor([mean]), torch.tensor([std]), persistent=False)
        setattr(net, kind.norm, nn.Identity())
        self.net = net
        self._names = {name: kind.published_name(name) for name in net.state_dict()}
        self.register_state_dict_post_hook(_give_published_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_published_names)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.input(images.movedim(1, -1)).movedim(-1, 1).to(next(self.net.parameters()).dtype)
        output = self.net(pixel_values=pixels.contiguous(), **self._options)
        tokens = upcast(output.last_hidden_state[:, self.drop_tokens :])
        return functional.layer_norm(tokens, (self.channels,), eps=self._eps)


def _give_published_names(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for mine, published in module._names.items():  # type: ignore[operator, union-attr]
        state[f"{prefix}net.{published}"] = state.pop(f"{prefix}net.{mine}")


def _take_published_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for mine, published in module._names.items():  # type: ignore[operator, union-attr]
        if f"{prefix}net.{published}" in state:
            state[f"{prefix}net.{mine}"] = state.pop(f"{prefix}net.{published}")


def _build_transformer(config: EncoderConfig, *, pretrained: bool) -> FrozenEncoder:
    source = config.source or "the encoder"
    transformers = import_package(
        "transformers", "encoders", f"the encoder {config.source}" if config.source else "the encoder"
    )
    place = locate(config.source, "the encoder") if pretrained and config.source is not None else None
    found = config.config if config.config is not None or place is None else read_json(place.config, source)
    assert found is not None
    model_type = str(found.get("model_type"))
    if model_type not in KINDS:
        raise ModelFileError(
            f"{source} is of model_type {model_type!r}, which is no encoder known here; give one of {', '.join(KINDS)}"
        )
    kind = KINDS[model_type]
    try:
        with quiet(transformers):
            seeing = found.get("vision_config", found)  # of SigLIP's and CLIP's two networks
            architecture = getattr(transformers, f"{kind.name}Config").from_dict({**seeing, **kind.settings})
            model_class = getattr(transformers, f"{kind.name}Model")
            if place is None:
                net, missing = model_class(architecture, **kind.arguments), []
            else:
                net, report = model_class.from_pretrained(
                    place.name,
                    config=architecture,
                    revision=place.revision or "main",
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **kind.arguments,
                )
                missing = sorted(report["missing_keys"])
    except Exception as error:  # transformers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{source} cannot be built ({reason(error)}); give a folder with config.json and model.safetensors"
        ) from error
    if missing:
        raise ModelFileError(
            f"{source} lacks {len(missing)} tensors of its network, such as {missing[0]}; give a complete network"
        )
    mean, std = config.mean or kind.input[0], config.std or kind.input[1]
    full = dataclasses.replace(config, config=architecture.to_diff_dict(), mean=mean, std=std)
    return FrozenEncoder(full, TransformerTokens(net, kind, mean, std))
