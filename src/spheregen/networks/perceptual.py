"""Perceptual distances between images: frozen networks whose features are compared.

Two providers share one interface:

- published: (LPIPS-VGG16 + 0.1 * MSE of ConvNeXt-Small's logits at 224 px) / 1.1, the sphere encoder's own (Yue et
  al. 2026, arXiv 2602.15030; LPIPS: Zhang et al. 2018, arXiv 1801.03924). It needs three public weight files, see
  `PUBLISHED_FILES`.
- builtin: the same idea as LPIPS on FeatureNet, a small network that ships with the package. Fit for small images
  and laptops; its values are on another scale than the published ones.

Shapes: images (B, C, H, W) in [0, 1], C = 3, or 1 for grey; distances (B,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spheregen.errors import ConfigError, ModelFileError, did_you_mean
from spheregen.networks.backbones.convnext import ConvNeXt, load_convnext_small
from spheregen.networks.backbones.feature_net import WIDTHS, FeatureNet, load_feature_net
from spheregen.networks.backbones.state import read_torch_state
from spheregen.networks.backbones.vgg16 import STAGE_WIDTHS, Vgg16Features, load_vgg16
from spheregen.networks.frozen import IMAGENET_MEAN, IMAGENET_STD, Frozen
from spheregen.networks.weights import WeightFile, download_files, find_files, weight_folders
from spheregen.nn.norm import unit_vectors

VGG16 = WeightFile(
    name="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256_start="397923af",
)
CONVNEXT_SMALL = WeightFile(
    name="convnext_small-0c510722.pth",
    url="https://download.pytorch.org/models/convnext_small-0c510722.pth",
    sha256_start="0c510722",
)
LPIPS_VGG = WeightFile(
    name="vgg.pth",
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
)
PUBLISHED_FILES = (VGG16, CONVNEXT_SMALL, LPIPS_VGG)

PROVIDERS = ("auto", "published", "builtin", "none")

Features = tuple[torch.Tensor, ...]

# LPIPS moves images to [-1, 1] and then applies these.
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)

# Constants of the builtin distance, one for each stage of the shipped FeatureNet, measured on CIFAR-10's test images.
# A tenth of the features' mean squared norm, so that faint activity in flat areas is not blown up to unit norm.
_STAGE_EPS = (3.0, 4.0, 6.0, 8.0)
# The stages count equally, and two unrelated images are 1 apart: a quarter over each stage's mean for such pairs.
_STAGE_WEIGHTS = (0.276, 0.172, 0.157, 0.165)


class PerceptualLoss(Frozen):
    """A frozen perceptual distance.

    The features of a batch that several terms compare need computing only once: take them with `features`, pass
    them to `distance`, and detach them where no gradient shall flow. Under autocast the networks run in its dtype,
    all norms and distances in float32.
    """

    name: str  # the provider: "published" or "builtin"
    widths: tuple[int, ...]
    """Channels of the feature maps (B, F, H/2^i, W/2^i), i = 0, 1, ..., which are the first of the features."""

    def features(self, images: torch.Tensor) -> Features:
        """Return what is compared, for images (B, C, H, W) in [0, 1]; differentiable with respect to the images.

        Raises:
            ConfigError: the images have another number of channels or are too small (builtin: 8 px, published: 16 px).
        """
        raise NotImplementedError

    def distance(self, a: Features, b: Features) -> torch.Tensor:
        """Return the distance of each sample, (B,) float32: at least 0, symmetric, 0 for equal images."""
        raise NotImplementedError

    def maps(self, images: torch.Tensor) -> Features:
        """Return the feature maps of `features` alone, without what a classifier makes of them."""
        return self.features(images)

    def map_distance(self, a: Features, b: Features) -> torch.Tensor:
        """Return the distance (B,) float32 of `maps` alone."""
        return self.distance(a, b)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return what a frozen classifier makes of images (B, C, H, W) in [0, 1], (B, K) float32."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of two batches of images of one shape, a scalar."""
        return self.distance(self.features(images), self.features(reference)).mean()


class PublishedPerceptual(PerceptualLoss):
    """(LPIPS-VGG16 + 0.1 * mean squared error of ConvNeXt-Small's logits at 224 px) / 1.1 (arXiv 2602.15030).

    Features: five maps of VGG16 of unit norm over channels, then logits.

    Args:
        vgg16: the network with ImageNet weights.
        channel_weights: five tensors (1, C, 1, 1) for C = 64, 128, 256, 512, 512: LPIPS's learned weights.
        convnext: the classifier with ImageNet weights.
    """

    name = "published"
    widths = STAGE_WIDTHS
    logit_weight, logit_size = 0.1, 224
    vgg16_mean: torch.Tensor
    vgg16_std: torch.Tensor
    convnext_mean: torch.Tensor
    convnext_std: torch.Tensor

    def __init__(self, vgg16: Vgg16Features, channel_weights: Sequence[torch.Tensor], convnext: ConvNeXt) -> None:
        super().__init__()
        self.vgg16, self.convnext = vgg16, convnext
        self.channel_weights = nn.ParameterList([weight.detach().clone().float() for weight in channel_weights])
        # One affine map each from [0, 1] to what the network was trained on.
        for prefix, mean, std in (
            ("vgg16", [(1 + shift) / 2 for shift in LPIPS_SHIFT], [scale / 2 for scale in LPIPS_SCALE]),
            ("convnext", IMAGENET_MEAN, IMAGENET_STD),
        ):
            self.register_buffer(f"{prefix}_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
            self.register_buffer(f"{prefix}_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    def features(self, images: torch.Tensor) -> Features:
        return (*self.maps(images), self.logits(images))

    def maps(self, images: torch.Tensor) -> Features:
        maps = self.vgg16((as_colour(images) - self.vgg16_mean) / self.vgg16_std)
        return tuple(unit_norm(x, 1e-10) for x in maps)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        size, large = (self.logit_size, self.logit_size), as_colour(images)
        if large.shape[2:] != size:
            large = functional.interpolate(large, size=size, mode="bilinear", antialias=True, align_corners=False)
        logits: torch.Tensor = self.convnext((large - self.convnext_mean) / self.convnext_std)
        return logits.float()

    def distance(self, a: Features, b: Features) -> torch.Tensor:
        (*maps_a, logits_a), (*maps_b, logits_b) = a, b
        logit_error = (logits_a - logits_b).square().mean(dim=1)
        lpips = self.map_distance(tuple(maps_a), tuple(maps_b))
        return (lpips + self.logit_weight * logit_error) / (1 + self.logit_weight)

    def map_distance(self, a: Features, b: Features) -> torch.Tensor:
        lpips = torch.zeros(len(a[0]), device=a[0].device)
        for weight, x, y in zip(self.channel_weights, a, b, strict=True):
            lpips = lpips + (weight * (x - y).square()).sum(dim=1).mean(dim=(1, 2))
        return lpips


class BuiltinPerceptual(PerceptualLoss):
    """LPIPS's recipe on FeatureNet: squared differences of features of unit norm over channels.

    Each stage's differences are summed over channels and averaged over space; the stages are added with fixed weights
    that put two unrelated photographs 1 apart on average. Features: the four maps of norm at most 1 over channels.

    Args:
        net: the network; the one that ships with the package if None.
    """

    name = "builtin"
    widths = WIDTHS

    def __init__(self, net: FeatureNet | None = None) -> None:
        super().__init__()
        self.net = load_feature_net() if net is None else net
        self.freeze()

    def features(self, images: torch.Tensor) -> Features:
        maps = self.net.features(as_colour(images))
        return tuple(unit_norm(x, eps) for x, eps in zip(maps, _STAGE_EPS, strict=True))

    def distance(self, a: Features, b: Features) -> torch.Tensor:
        total = torch.zeros(len(a[0]), device=a[0].device)
        for weight, x, y in zip(_STAGE_WEIGHTS, a, b, strict=True):
            apart: torch.Tensor = _Apart.apply(x, y)  # type: ignore[no-untyped-call]
            total = total + weight * apart / x[0, 0].numel()
        return total

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(as_colour(images))
        return logits.float()


def find_weights(weights: Path | str | None = None) -> dict[WeightFile, Path]:
    """Find where each of the three files lies; a file that is nowhere is left out."""
    return find_files(PUBLISHED_FILES, weight_folders(weights))


def available_provider(weights: Path | str | None = None) -> str:
    """Return what provider "auto" stands for here: "published" if its three files are found, else "builtin"."""
    return "published" if len(find_weights(weights)) == len(PUBLISHED_FILES) else "builtin"


def load_perceptual(provider: str = "auto", weights: Path | str | None = None) -> PerceptualLoss | None:
    """Build a perceptual loss on the CPU, in float32.

    Args:
        provider: "auto" (published when its weight files are found, else builtin; never downloads), "published"
            (fetches the files that are missing), "builtin", or "none".
        weights: folder to search first for the published files; then $SPHEREGEN_WEIGHTS and torch.hub's checkpoints.

    Returns:
        The loss, or None for "none".

    Raises:
        ConfigError: no such provider, or `weights` is a file.
        ModelFileError: a weight file is broken, or missing and out of reach.
    """
    if provider not in PROVIDERS:
        hint = did_you_mean(provider, PROVIDERS)
        raise ConfigError(f"there is no perceptual loss {provider!r}{hint}; choose one of {', '.join(PROVIDERS)}")
    if provider == "none":
        return None
    if provider == "published":
        user, other_way = "the published perceptual loss", "choose perceptual 'builtin'"
        files = download_files(PUBLISHED_FILES, weight_folders(weights), user=user, other_way=other_way)
        return _published(files)
    if provider == "auto" and available_provider(weights) == "published":
        return _published(find_weights(weights))
    return BuiltinPerceptual()


def _published(files: Mapping[WeightFile, Path]) -> PublishedPerceptual:
    return PublishedPerceptual(
        load_vgg16(files[VGG16]), lpips_weights(files[LPIPS_VGG]), load_convnext_small(files[CONVNEXT_SMALL])
    )


def random_perceptual(provider: str = "published") -> PerceptualLoss:
    """Return the networks of `published` or `builtin` with random weights: as large and fast as the real ones."""
    if provider == "builtin":
        return BuiltinPerceptual(FeatureNet())
    return PublishedPerceptual(Vgg16Features(), [torch.rand(1, width, 1, 1) for width in STAGE_WIDTHS], ConvNeXt())


def as_colour(images: torch.Tensor) -> torch.Tensor:
    """Return images (B, 1 or 3, H, W) of any float dtype as (B, 3, H, W) float32; grey is repeated."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(
            f"a perceptual loss compares images of shape (B, 3, H, W) or (B, 1, H, W), not {tuple(images.shape)}; "
            "convert them to colour or grey, or choose perceptual 'none'"
        )
    return images.float().expand(-1, 3, -1, -1)


def unit_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Divide (B, C, H, W) by its norm over channels in float32; `eps` keeps the gradient finite where all are 0."""
    return unit_vectors(x.float().movedim(1, -1), eps).movedim(-1, 1)


class _Apart(torch.autograd.Function):
    """`sum((x - y)^2)` (B,) of maps, in half of the passes over memory that autograd makes of it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        apart = x - y
        ctx.save_for_backward(apart)
        length: torch.Tensor = torch.linalg.vector_norm(apart.movedim(1, -1).flatten(1), dim=1)
        return length.square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (apart,) = ctx.saved_tensors
        of_x = apart * (2 * grad)[:, None, None, None]
        return of_x, -of_x if ctx.needs_input_grad[1] else None


def lpips_weights(path: Path) -> list[torch.Tensor]:
    """Read LPIPS's five channel weights (1, C, 1, 1) from its file `vgg.pth`."""
    state = read_torch_state(path)
    shapes = {f"lin{stage}.model.1.weight": (1, width, 1, 1) for stage, width in enumerate(STAGE_WIDTHS)}
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes:
        raise ModelFileError(
            f"{path} does not hold LPIPS's weights for VGG16 ({', '.join(shapes)}); give the file vgg.pth of LPIPS 0.1"
        )
    return [state[name] for name in shapes]


def perceptual_name(perceptual: PerceptualLoss | None) -> str:
    """Return the provider of a perceptual distance, or `none`."""
    return "none" if perceptual is None else perceptual.name
