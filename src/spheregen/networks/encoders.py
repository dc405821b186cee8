"""Frozen image encoders: representations that others learned, or our small FeatureNet, as tokens on a grid.

Source: Zheng et al. 2025, "Diffusion Transformers with Representation Autoencoders" (arXiv 2510.11690): patch tokens
alone, after the last LayerNorm without its gain and shift.
Legend: B samples, C image channels, S image size, N = grid^2 tokens in row-major order, d channels of a token.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, Settings, check_choices
from spheregen.external import import_package, load_network, locate, quiet, read_json, reason
from spheregen.networks.backbones.feature_net import MIN_SIZE, WIDTHS, FeatureNet, load_feature_net
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD, Frozen
from spheregen.networks.normaliser import Normaliser
from spheregen.nn.linear import DECAY, NO_DECAY, tag
from spheregen.sphere import upcast

_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Settings):
    """The network that sees the images, and the way that they are brought to it.

    Raises:
        ConfigError: an impossible combination, with the reason.
    """

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
    """Images are resized to this many pixels; None leaves them as they are."""
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    """The filter that resizes them."""
    clamp: bool = False
    """Bring what leaves [0, 1], after it was resized, back to it."""
    antialias: bool = True
    """True: as Pillow resizes, with a filter as wide as the reduction. False: PyTorch's filter without, as the
    published RAE has it."""
    final_norm: bool = False
    """transformers: the last LayerNorm keeps its gain and shift."""
    mean: tuple[float, float, float] | None = None
    """transformers: of the input in [0, 1]. None: what networks of its kind were trained with (ImageNet's; CLIP's own;
    0.5 for SigLIP and ViT)."""
    std: tuple[float, float, float] | None = None
    """transformers: likewise."""

    def __post_init__(self) -> None:
        check_choices(self, prefix="encoder ")
        if self.input_size is not None and self.input_size < 1:
            raise ConfigError(f"input_size is a number of pixels, not {self.input_size}")
        if (self.mean is None) != (self.std is None) or (self.std is not None and min(self.std) <= 0):
            raise ConfigError(f"mean and std belong together, and std is positive, not {self.mean} and {self.std}")
        if self.kind == "feature_net":
            if self.stage not in range(1, len(WIDTHS) + 1):
                raise ConfigError(f"stage of a feature_net is 1 to {len(WIDTHS)}, not {self.stage}; 3 suits 32 px")
            if self.config is not None or self.mean is not None:
                raise ConfigError("a feature_net has its own architecture, mean and std; leave config, mean, std out")
        elif self.stage is not None or (self.source is None and self.config is None):
            raise ConfigError("an encoder of transformers has a source, a folder or user/name on the Hub, and no stage")


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

    def thaw(self, blocks: int, norms: bool) -> None:
        """Let the last so many blocks learn, and all norms and layer scales; it stays in evaluation mode.

        Raises:
            ConfigError: it has not so many blocks.
        """
        names = self.network.learners(blocks, norms) if isinstance(self.network, TransformerTokens) else ()
        if not names:
            raise ConfigError("this encoder has no blocks or norms that could learn; take one of transformers")
        for name in names:
            parameter = self.network.get_parameter(name)
            parameter.requires_grad_()
            tag([parameter], DECAY if parameter.ndim > 1 else NO_DECAY)

    @property
    def has_class_token(self) -> bool:
        """Beside the patches there is a token of the whole image."""
        return isinstance(self.network, TransformerTokens) and self.network.has_class_token

    def forward(self, images: Tensor, *, class_token: bool = False) -> Any:
        """Return the patch tokens, and with `class_token` also the class token (B, d)."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
            raise ConfigError(f"an encoder takes images of shape (B, 1 or 3, S, S), not {tuple(images.shape)}")
        self.grid_of(images.shape[2])
        x = (upcast(images).expand(-1, 3, -1, -1) + 1) / 2
        if self.config.input_size is not None:
            x = resized(x, self.config.input_size, antialias=self.config.antialias, filter=self.config.filter)
        x = x.clamp(0, 1) if self.config.clamp else x
        if class_token:
            assert isinstance(self.network, TransformerTokens)
            tokens = self.network.all_tokens(x)
            return tokens[:, -self.network.patches_of(x) :], tokens[:, 0]
        return upcast(self.network(x))


def resized(images: Tensor, size: int, *, antialias: bool, filter: str = "bicubic") -> Tensor:
    """Resize square images (B, C, S, S) to (B, C, size, size), not clamped; see `EncoderConfig`."""
    if images.shape[2] == size:
        return images
    # Apple's GPU lacks the antialiased filter
    x = images.cpu() if antialias and images.device.type == "mps" else images
    x = functional.interpolate(x, size=(size, size), mode=filter, antialias=antialias, align_corners=False)
    return x.to(images.device)


def build_encoder(config: EncoderConfig, *, pretrained: bool) -> FrozenEncoder:
    """Build a frozen encoder, float32, on the CPU; its `config` has everything filled in that was read or derived.

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
        self.smallest = MIN_SIZE
        net.stages = net.stages[:stage]
        del net.classifier
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.net.features(images.to(next(self.net.parameters()).dtype))[-1]
        return maps.flatten(2).transpose(1, 2)


MODEL_TYPES = {
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2_with_registers",
    "dinov3_vit": "dinov3_vit",
    "vit": "vit",
    "siglip": "siglip_vision_model",
    "siglip_vision_model": "siglip_vision_model",
    "clip": "clip_vision_model",
    "clip_vision_model": "clip_vision_model",
}
"""The `model_type` of a config.json that is known here -> that of the part which sees, for `AutoModel`."""
_NORMS = ("layernorm", "norm", "post_layernorm")
"""Names of the last LayerNorm."""
_INPUTS = {"vit": _HALF, "siglip": _HALF, "siglip_vision_model": _HALF, "clip": _CLIP, "clip_vision_model": _CLIP}
"""Mean and deviation that a network was trained with, where they are not those of ImageNet."""
_UNPOOLED: Mapping[str, Mapping[str, Any]] = {"siglip_vision_model": {"vision_use_head": False}}
"""Settings of a configuration that leave out what pools the tokens."""
_ATTENTION = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_RENAMED = {
    "dinov2": _ATTENTION,
    "dinov2_with_registers": _ATTENTION,
    "dinov3_vit": ((r"^model\.", ""),),
    "vit": (
        *_ATTENTION,
        (r"^layers\.", "encoder.layer."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ),
}
"""Parts of weights' names that newer versions of transformers changed, and what they are called in files."""


def published_name(model_type: str, name: str) -> str:
    """Return the name of a weight in the files of the Hub, whatever this version of transformers calls it."""
    for pattern, original in _RENAMED.get(model_type, ()):
        name = re.sub(pattern, original, name)
    return name


class TransformerTokens(nn.Module):
    """The patch tokens of a network of transformers, for images (B, 3, S, S) in [0, 1], after a LayerNorm without gain
    and shift, (B, N, d). It stands in for the network's last norm, which CLIP gives its class token alone.

    In a state dictionary the weights have the names of the Hub's files, since those inside transformers change: what
    is saved with one version can be read with another.
    """

    def __init__(
        self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], *, final_norm: bool = False
    ) -> None:
        super().__init__()
        config: Any = net.config
        net = getattr(net, "vision_model", net)  # in older versions of transformers it lies one deeper
        self.channels, self.patch = int(config.hidden_size), int(config.patch_size)
        self.smallest = self.patch
        self._eps = float(config.layer_norm_eps)
        self.has_class_token = not str(config.model_type).startswith("siglip")
        self.input = Normaliser(torch.tensor([mean]), torch.tensor([std]), persistent=False)
        self.final_norm, self.depth = final_norm, int(config.num_hidden_layers)
        if not final_norm:
            setattr(net, next(name for name in _NORMS if hasattr(net, name)), nn.Identity())
        elif config.model_type.startswith("clip"):
            raise ConfigError("the last norm of CLIP is of its class token alone; leave final_norm out")
        # some take images of another size than they were trained with if they are told to, others by themselves
        takes = inspect.signature(net.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        self.net = net
        self._names = {name: published_name(config.model_type, name) for name in net.state_dict()}
        self.register_state_dict_post_hook(_give_published_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_published_names)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        return self.all_tokens(images)[:, -self.patches_of(images) :]

    def patches_of(self, images: Tensor) -> int:
        """Return how many of the tokens are of patches, behind class token and registers."""
        return int((images.shape[2] // self.patch) ** 2)

    def all_tokens(self, images: Tensor) -> Tensor:
        """Return class token, registers and patch tokens, as far as there are any."""
        pixels = self.input(images.movedim(1, -1)).movedim(-1, 1).to(next(self.net.parameters()).dtype)
        output = self.net(pixel_values=pixels.contiguous(), **self._options)
        tokens = upcast(output.last_hidden_state)
        return tokens if self.final_norm else functional.layer_norm(tokens, (self.channels,), eps=self._eps)

    def learners(self, blocks: int, norms: bool) -> list[str]:
        """Return the names of the parameters of the last blocks, and of all norms and layer scales."""
        if blocks > self.depth:
            raise ConfigError(f"the encoder has {self.depth} blocks, so {blocks} of them cannot learn")
        last = {str(number) for number in range(self.depth - blocks, self.depth)}
        found = []
        for name, _ in self.named_parameters():
            block = re.search(r"\blayers?\.(\d+)\.", name)
            if (block and block[1] in last) or (norms and re.search(r"norm|layer_scale", name)):
                found.append(name)
        return found


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
    if model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ModelFileError(
            f"{source} is of model_type {model_type!r}, which is no encoder known here; give one of {known}"
        )
    sees = MODEL_TYPES[model_type]
    arguments: dict[str, Any] = {"add_pooling_layer": False} if sees == "vit" else {}
    try:
        with quiet(transformers):
            seeing = dict(found.get("vision_config", found))  # of SigLIP's and CLIP's two networks
            seeing.pop("model_type", None)
            architecture = transformers.AutoConfig.for_model(sees, **{**seeing, **_UNPOOLED.get(sees, {})})
            if place is None:
                net = transformers.AutoModel.from_config(architecture, **arguments)
            else:
                net = load_network(transformers.AutoModel, place, config=architecture, **arguments)
    except Exception as error:  # transformers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"{source} cannot be built ({reason(error)}); give a folder with config.json and model.safetensors"
        ) from error
    own_mean, own_std = _INPUTS.get(model_type, (IMAGENET_MEAN, IMAGENET_STD))
    mean, std = config.mean or own_mean, config.std or own_std
    full = dataclasses.replace(config, config=architecture.to_diff_dict(), mean=mean, std=std)
    return FrozenEncoder(full, TransformerTokens(net, mean, std, final_norm=config.final_norm))
