"""Frozen features of images that distribution matching compares, and what happens to images before they are compared.

Networks: our FeatureNet, which needs nothing, or a ConvNeXt of the package transformers, ConvNeXtV2-nano as published.
Legend: B samples, S image size, T tokens (a square number) of C channels in a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, Settings, check_choices, did_you_mean
from spheregen.external import import_package, load_network, locate, quiet, reason
from spheregen.measure.features.inception import PYTORCH_FID, TORCH_FIDELITY
from spheregen.measure.features.preprocessing import tf1_bilinear
from spheregen.networks.backbones.feature_net import WIDTHS, FeatureNet, load_feature_net
from spheregen.networks.backbones.inception import FEATURES, SIZE, FidInception, load_inception
from spheregen.networks.encoders import resized
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD, Frozen
from spheregen.networks.perceptual import as_colour
from spheregen.networks.weights import locate_file
from spheregen.sphere import full_precision, upcast

NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "convnextv2-nano": (
        "facebook/convnextv2-nano-1k-224",
        {"hidden_sizes": [80, 160, 320, 640], "depths": [2, 2, 8, 2]},
    ),
    "convnextv2-tiny": (
        "facebook/convnextv2-tiny-1k-224",
        {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    ),
}
"""Names of ConvNeXts, each a network on the Hub and its architecture."""
OURS, INCEPTION = "feature_net", "inception"


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(Settings):
    """The network whose features are compared, and the layers that count.

    Raises:
        ConfigError: an unknown network, or layers that it has not.
    """

    network: str = OURS
    """`feature_net`, or `convnextv2-nano` as published, or `convnextv2-tiny`; a judge may be `inception`, the network
    of FID, of which there is the last layer alone."""
    source: str | None = None
    """A folder or Hub id of the weights in place of the network's own; a file for `feature_net` and `inception`."""
    layers: tuple[int, ...] = (1, 2)
    """The stages whose maps count, from 0 on. Those of `feature_net` have 16, 48, 96 and 160 channels and 1, 2, 4 and 8
    pixels a side, those of a ConvNeXt 4, 8, 16 and 32 pixels."""
    input_size: int | None = None
    """Images are resized to this many pixels (bicubic); None leaves them as they are, as published."""
    half: Literal["auto", "never"] = "auto"
    """`never` computes features in float32 under bf16 autocast too."""

    def __post_init__(self) -> None:
        check_choices(self, "loss.features.")
        if self.network not in (OURS, INCEPTION, *NETWORKS):
            known = (OURS, INCEPTION, *NETWORKS)
            hint = did_you_mean(self.network, known)
            raise ConfigError(f"unknown features {self.network!r}{hint}; use one of {', '.join(known)}")
        if not self.layers or any(not 0 <= layer < 4 for layer in self.layers):
            raise ConfigError(f"loss.features.layers are stages from 0 to 3, not {self.layers}")
        if self.network == INCEPTION and (self.layers != (3,) or self.input_size is not None):
            raise ConfigError("inception has one layer, 3, and an input size of its own: layers: [3], no input_size")
        if sorted(set(self.layers)) != list(self.layers):
            raise ConfigError(f"loss.features.layers are in order, each once, not {self.layers}")

    def shapes(self, image_size: int) -> list[tuple[int, int]]:
        """Return tokens and channels (T, C) of the layers for images of this size.

        Raises:
            ConfigError: the images are too small or their size does not divide.
        """
        if self.network == INCEPTION:
            return [(1, FEATURES)]
        size = self.input_size or image_size
        channels = WIDTHS if self.network == OURS else NETWORKS[self.network][1]["hidden_sizes"]
        first = 1 if self.network == OURS else 4
        steps = [first * 2**layer for layer in self.layers]
        if size % steps[-1] or size < 2 * steps[-1]:
            raise ConfigError(
                f"images of {size} px are no whole grid of two or more tokens at stage {self.layers[-1]} of "
                f"{self.network}; set loss.features.input_size or earlier layers"
            )
        return [((size // step) ** 2, channels[layer]) for step, layer in zip(steps, self.layers, strict=True)]

    @property
    def final_channels(self) -> int:
        """Channels of the last stage's map."""
        if self.network == INCEPTION:
            return FEATURES
        return int(WIDTHS[-1] if self.network == OURS else NETWORKS[self.network][1]["hidden_sizes"][-1])


class FeatureMaps(Frozen):
    """Images (B, 1 or 3, S, S) in [0, 1] to the maps of the layers as tokens, each (B, T, C) float32.

    Gradients reach the images.

    Args:
        config: which network and layers.
        stages: called with normalised images, gives the maps (B, C, H, W) of all four stages.
    """

    def __init__(self, config: FeatureConfig, stages: nn.Module) -> None:
        super().__init__()
        self.config, self.stages = config, stages
        self.freeze()

    def forward(self, images: Tensor, *, final: bool = False) -> list[Tensor]:
        """Return the layers, and with `final` the last stage's map behind them."""
        x = as_colour(images.clamp(0, 1))
        if self.config.input_size is not None:
            x = resized(x, self.config.input_size, antialias=True).clamp(0, 1)
        with full_precision(x.device.type) if self.config.half == "never" else contextlib.nullcontext():
            maps = self.stages(x)
        chosen = [maps[layer] for layer in self.config.layers] + ([maps[-1]] if final else [])
        return [upcast(each).flatten(2).transpose(1, 2) for each in chosen]


class OurStages(nn.Module):
    """The four maps of a FeatureNet, for images (B, 3, S, S) in [0, 1]."""

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self.net.features(images)


class ConvNextStages(nn.Module):
    """The four maps of a ConvNeXt of transformers, for images (B, 3, S, S) in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        found = self.net((images - self.mean) / self.std, output_hidden_states=True).hidden_states
        return found[1:]  # type: ignore[no-any-return]


class InceptionStages(nn.Module):
    """The pooled features of the network of FID as a last map (B, 2048, 1, 1), for images (B, 3, S, S) in [0, 1], which
    are not rounded to 8 bits."""

    def __init__(self, net: FidInception) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        found: Tensor = self.net((tf1_bilinear(255 * images, SIZE) - 128) / 128)
        return [found[:, :, None, None]] * 4


def build_features(config: FeatureConfig, pretrained: bool) -> FeatureMaps:
    """Build the network of features, float32, on the CPU.

    Args:
        config: which one.
        pretrained: load its weights; False: random ones of the same shapes, for estimates.

    Raises:
        SphereGenError: transformers is not installed.
        ModelFileError: the weights are missing or out of reach.
    """
    if config.network == OURS:
        return FeatureMaps(config, OurStages(load_feature_net(config.source) if pretrained else FeatureNet()))
    if config.network == INCEPTION:
        user, other = "the judge inception", "give its file as loss.judge.source"
        file = (
            locate_file(config.source, (PYTORCH_FID, TORCH_FIDELITY), user=user, other_way=other)
            if pretrained
            else None
        )
        return FeatureMaps(config, InceptionStages(FidInception() if file is None else load_inception(file)))
    name, architecture = NETWORKS[config.network]
    source = config.source or name
    transformers = import_package("transformers", "encoders", f"the features {config.network}")
    try:
        with quiet(transformers):
            if pretrained:
                net = load_network(transformers.ConvNextV2Model, locate(source, "the feature network"))
            else:
                net = transformers.ConvNextV2Model(transformers.ConvNextV2Config(**architecture))
    except ModelFileError:
        raise
    except Exception as error:  # transformers, safetensors and HTTP libraries have no common base
        raise ModelFileError(
            f"the features {config.network} cannot be read from {source} ({reason(error)}); give a folder as "
            "loss.features.source, or take feature_net"
        ) from error
    found = tuple(net.config.hidden_sizes)
    if found != tuple(architecture["hidden_sizes"]):
        raise ModelFileError(
            f"{source} is no {config.network}: its stages have {found} channels; give the right weights"
        )
    return FeatureMaps(config, ConvNextStages(net))


# what happens to images -----------------------------------------------------------------------------------------------


def most_shift(size: int, share: float) -> int:
    """Return the pixels by which images of this size are moved at most, a share of their side."""
    return int(size * share + 0.5)


def shifted(images: Tensor, moves: Tensor, flips: Tensor) -> Tensor:
    """Return images (B, C, S, S) mirrored where (B,) `flips` is true, then moved by (B, 2) whole rows and columns; what
    comes in is the reflection at the edge."""
    side = images.shape[-1]
    x = torch.where(flips[:, None, None, None], images.flip(-1), images)
    places = torch.arange(side, device=images.device)
    rows, columns = (_reflected(places + moves[:, axis, None], side) for axis in (0, 1))
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(places: Tensor, side: int) -> Tensor:
    inside = places.abs()
    return torch.where(inside >= side, 2 * (side - 1) - inside, inside)


def affine(images: Tensor, moves: Tensor) -> Tensor:
    """Return images (B, C, S, S) flipped, moved and scaled, by bilinear sampling with reflection.

    Args:
        images: of any range.
        moves: (B, 4): 1 or -1 (mirrored), shares of the side to the right and down, and the scale.
    """
    flip, right, down, scale = moves.to(images.dtype).unbind(1)
    zero = torch.zeros_like(flip)
    # where a pixel comes from, in coordinates from -1 to 1
    theta = torch.stack(
        [torch.stack([flip / scale, zero, -2 * right], 1), torch.stack([zero, 1 / scale, -2 * down], 1)], 1
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
