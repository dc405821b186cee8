"""Distribution matching: two small denoisers of frozen features, of real images and of decoded ones, and what they say.

The denoisers learn along with the decoder. Where they disagree about a decoded image's features, the decoder is pulled
to the real one's side. Their weights and all running statistics are part of a run's state, not of its model.

Sources: *Sphere Encoder 2* (arXiv 2610.02208) and facts of its code; Yin et al. 2024 (arXiv 2311.18828), distribution
matching; Karras et al. 2022 (arXiv 2206.00364), the preconditioning (EDM). Legend: B samples, J feature layers, T
tokens (a square number) of C channels in a layer, f features (B, T, C), s noise levels (B,), n standard normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.errors import ConfigError, Settings, check_choices
from spheregen.nn.block import Block, BlockOptions
from spheregen.nn.linear import NO_DECAY, linear, tag
from spheregen.nn.norm import LayerNorm
from spheregen.nn.positions import AxialRotary, TimeEmbedding, sinusoids
from spheregen.sphere import per_sample, upcast

SIGMA_DATA = 0.5
"""The standard deviation that features are brought to, of EDM."""
LEAST_SIGMA = 2e-3
"""The smallest noise level of the decoder's term."""
NORM_EPS = 1e-5
_LEAST_VARIANCE, _LEAST_STD = 1e-12, 1e-6
_BALANCE_DECAY = 0.99
_LEAST_BALANCE, _MOST_BALANCE, _LEAST_PULL = 0.05, 20.0, 1e-30


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """The denoisers, their training, and the term that they give the decoder. Defaults are those of the recipes.

    Shares are shares of the run, so that a shorter run keeps its proportions.

    Raises:
        ConfigError: a value outside of its range.
    """

    width: int = 384
    """Channels of a denoiser's tokens; at least those of its features, and rounded up to a multiple of 4 * heads."""
    margin: int = 128
    """Channels that a denoiser has more than features that are wider than `width`."""
    depth: int = 2
    """Transformer blocks."""
    heads: int = 8
    qk_norm: bool = True
    modulation: Literal["block", "shared"] = "block"
    """A modulation of each block's own, or one for all and a learned offset for each."""
    sees_sigma: bool = True
    """The denoisers are told the noise level."""
    sees_class: bool = True
    """They are told the class, where there are classes."""
    path_drop: float = 0.1
    """Share of a block's branches that stochastic depth leaves out, in the decoder's term too, as published."""
    start: float = 0.5
    """The share of the run from which the denoisers learn."""
    ramp: tuple[float, float] = (0.525, 0.575)
    """The shares between which the decoder's term fades in."""
    ramp_shape: Literal["linear", "cosine"] = "cosine"
    sigma_mean: float = -1.5
    """Of ln s in the decoder's term."""
    sigma_std: float = 1.0
    """See `sigma_mean`."""
    sigma_max: float = 6.0
    """The largest s there."""
    denoiser_mean: float = -1.2
    """Of ln s in the denoisers' training, as in EDM."""
    denoiser_std: float = 1.2
    """See `denoiser_mean`."""
    standardise: Literal["channel", "layer", "none"] = "channel"
    """Features are brought to a deviation of 0.5 by channel, by layer, or not at all."""
    channel_floor: float = 0.1
    """The least deviation of a channel, as a share of their median."""
    calibration_steps: int = 1000
    """Steps over which the deviations of the real features are measured; then they stay."""
    normaliser: Literal["sample", "batch"] = "sample"
    """The mean |f - D_real| that divides the pull: of each sample, or of the batch."""
    normaliser_floor: float = 1e-6
    clip: float = 1.0
    """The largest root mean square of a sample's pull; 0: not clipped."""
    balance: bool = True
    """Layers pull at pixels equally hard."""
    balance_steps: int = 1000
    """Steps over which their common strength is measured."""
    lr: float = 5e-4
    """Of the denoisers."""
    min_lr: float = 5e-5
    """The end of its cosine."""
    lr_warmup: float = 0.005
    """The share of the run over which it rises, from `start` on."""
    lr_decay: float = 0.5
    """The share of the run over which it falls, from `start` on."""
    clip_norm: float = 0.15
    """The largest norm of a denoiser's gradient."""

    def __post_init__(self) -> None:
        check_choices(self, "loss.score.")
        for name in ("width", "depth", "heads", "calibration_steps", "balance_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"loss.score.{name} is at least 1, not {getattr(self, name)}")
        for name in ("start", "path_drop", "channel_floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"loss.score.{name} is a share from 0 to less than 1, not {getattr(self, name):g}")
        for name in ("lr", "sigma_max", "clip_norm", "normaliser_floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"loss.score.{name} is a positive number, not {getattr(self, name):g}")
        for name in ("margin", "clip", "min_lr", "lr_warmup", "lr_decay", "sigma_std", "denoiser_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"loss.score.{name} is not negative, and finite: {getattr(self, name):g}")
        first, last = self.ramp
        if not self.start <= first <= last:
            raise ConfigError(
                f"loss.score.ramp {self.ramp} begins before the denoisers learn (start {self.start:g}), or ends before "
                "it begins"
            )

    def strength(self, progress: float) -> float:
        """Return how much of the decoder's term there is when a share of the run is done, 0 to 1."""
        first, last = self.ramp
        if progress < first or progress < self.start:
            return 0.0
        if progress >= last:
            return 1.0
        t = (progress - first) / (last - first)
        return t if self.ramp_shape == "linear" else (1 - math.cos(math.pi * t)) / 2

    def learning_rate(self, progress: float) -> float:
        """Return the denoisers' learning rate when a share of the run is done; 0 before they learn."""
        since = progress - self.start
        if since < 0:
            return 0.0
        rise = min(1.0, since / self.lr_warmup) if self.lr_warmup else 1.0
        gone = min(1.0, since / self.lr_decay) if self.lr_decay else 0.0
        return rise * (self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * gone)) / 2)


class ScoreNet(nn.Module):
    """A denoiser of features (B, T, C) at noise levels (B,), D(x, s), preconditioned as in EDM.

    It starts as c_skip x.

    Args:
        channels: C.
        tokens: T.
        classes: K, of labels that it is told; 0: of none.
        config: its sizes.
    """

    def __init__(self, channels: int, tokens: int, classes: int, config: ScoreConfig) -> None:
        super().__init__()
        grid, heads = math.isqrt(tokens), config.heads
        if grid * grid != tokens:
            raise ConfigError(f"a denoiser takes a square grid of features, not {tokens} tokens")
        wanted = config.width if channels <= config.width else channels + config.margin
        self.width = width = -(-wanted // (4 * heads)) * 4 * heads
        self.sees_sigma = config.sees_sigma
        self.embed = linear(channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.sigma = TimeEmbedding(width)
        self.labels = nn.Embedding(classes, width) if classes and config.sees_class else None
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)
            tag(self.labels.parameters(), NO_DECAY)
        options, own = BlockOptions(qk_norm=config.qk_norm, eps=NORM_EPS), config.modulation == "block"
        self.rotary = AxialRotary(grid, width // heads)
        self.blocks = nn.ModuleList(Block(width, heads, conditional=own, options=options) for _ in range(config.depth))
        self.shared = None if own else linear(width, 6 * width, init="zero")
        self.offsets = None if own else nn.Parameter(torch.zeros(config.depth, 6 * width))
        self.norm = LayerNorm(width, eps=NORM_EPS, affine=True)
        self.out = linear(width, channels, init="zero")

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Return what noisy features were before, (B, T, C).

        Args:
            x: f + s n, (B, T, C).
            sigma: s, (B,).
            labels: (B,) class ids; None without classes.
            kept: (B, depth, 2) factors of stochastic depth.
        """
        skip, out, into, noise = precondition(sigma)
        told = self.told(noise, labels)
        h = upcast(self.embed(per_sample(into, x) * x)) + self.positions
        for index, block in enumerate(self.blocks):
            h = block(h, self.rotary, self._vectors(index, told), None if kept is None else kept[:, index])
        change = upcast(self.out(self.norm(h)))
        return per_sample(skip, x) * x + per_sample(out, x) * change

    def told(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return the condition (B, W) of c_noise (B,) and labels."""
        told = self.sigma.embed(sinusoids(noise if self.sees_sigma else torch.zeros_like(noise)))
        return told if self.labels is None or labels is None else told + self.labels(labels)

    def _vectors(self, index: int, told: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.shared is None or self.offsets is None:
            return told
        joined = self.shared(functional.silu(told)) + self.offsets[index]
        vectors: tuple[Tensor, ...] = joined.unsqueeze(1).chunk(6, dim=-1)
        return vectors


def precondition(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return c_skip, c_out, c_in and c_noise of noise levels (Karras et al. 2022, table 1)."""
    total = sigma.square() + SIGMA_DATA**2
    root = total.sqrt()
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA / root, 1 / root, sigma.log() / 4


class FeatureScale(nn.Module):
    """Bring the features of a layer to mean 0 and a deviation of 0.5, by running statistics of real ones that freeze.

    Args:
        channels: C.
        config: how.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, channels: int, config: ScoreConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.ones(channels))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Take in the mean and mean square (2, C) of the real features of a global batch, unless they are frozen."""
        learns = self.count < self.config.calibration_steps
        self.count += learns
        share = torch.where(learns, 1 / self.count.clamp_min(1), 0.0)  # update n counts 1/n
        self.mean.lerp_(moments[0], share)
        self.square.lerp_(moments[1], share)

    @property
    def std(self) -> Tensor:
        """The deviation (C,) by which features are divided, before the factor of 0.5."""
        variance = (self.square - self.mean.square()).clamp_min(_LEAST_VARIANCE)
        if self.config.standardise == "layer":
            return variance.mean().sqrt().clamp_min(_LEAST_STD).expand_as(variance)
        std = variance.sqrt()
        return torch.maximum(std, self.config.channel_floor * std.median())

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, T, C) as the denoisers see them."""
        if self.config.standardise == "none":
            return features
        return (features - self.mean) / (self.std / SIGMA_DATA)

    @property
    def unit(self) -> Tensor:
        """How much a raw feature changes where one as the denoisers see it changes by 1; a mean over channels."""
        if self.config.standardise == "none":
            return torch.ones_like(self.count)
        if self.config.standardise == "layer":
            return self.std[0] / SIGMA_DATA
        return self.std.square().reciprocal().mean().rsqrt() / SIGMA_DATA


def moments_of(features: Tensor) -> Tensor:
    """Return the mean and the mean square (2, C) of features (B, T, C) over samples and tokens."""
    flat = features.flatten(0, 1)
    return torch.stack([flat.mean(dim=0), flat.square().mean(dim=0)])


@dataclass(frozen=True)
class Pull:
    """The pull on the decoded features of a layer, without gradients."""

    change: Tensor
    """(B, T, C): G, to be taken away from the features."""
    rms: Tensor
    """(B,): the root mean square of each sample's before it was clipped."""
    sigma: Tensor
    """(B,)."""
    real: Tensor
    """(B, T, C): what the denoiser of real features makes of the noisy ones."""
    fake: Tensor
    """(B, T, C): the same of the other one."""
    normaliser: Tensor
    """(B or 1, 1, 1)."""


class ScoreMatching(nn.Module):
    """Real and fake denoisers for each feature layer, the scales of features, and the balance of layers.

    Args:
        config: of all of them.
        shapes: (T, C) of each layer.
        classes: K of the labels; 0 without.
    """

    strengths: Tensor
    target: Tensor
    count: Tensor

    def __init__(self, config: ScoreConfig, shapes: Sequence[tuple[int, int]], classes: int) -> None:
        super().__init__()
        self.config, self.shapes = config, tuple(shapes)
        nets = [[ScoreNet(channels, tokens, classes, config) for tokens, channels in shapes] for _ in range(2)]
        self.real, self.fake = nn.ModuleList(nets[0]), nn.ModuleList(nets[1])
        self.scales = nn.ModuleList(FeatureScale(channels, config) for _, channels in shapes)
        self.register_buffer("strengths", torch.zeros(len(shapes)))
        self.register_buffer("target", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def standardised(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of all layers as the denoisers see them."""
        return [scale(upcast(each)) for scale, each in zip(self.scales, features, strict=True)]

    def observe(self, moments: Sequence[Tensor]) -> None:
        """Take in the moments of a global batch's real features, one (2, C) for each layer."""
        for scale, each in zip(self.scales, moments, strict=True):
            scale.update(each)  # type: ignore[operator]

    @torch.no_grad()
    def pull(
        self,
        layer: int,
        features: Tensor,
        normal: Tensor,
        noise: Tensor,
        labels: Tensor | None,
        kept: Sequence[Tensor | None] = (None, None),
    ) -> Pull:
        """Return how decoded features of a layer, standardised, shall change.

        Args:
            layer: j.
            features: f, (B, T, C).
            normal: (B,) standard normal, of the noise levels.
            noise: (B, T, C) standard normal.
            labels: (B,) class ids.
            kept: factors of stochastic depth of the real and the fake denoiser.
        """
        config, f = self.config, features.detach()
        sigma = (config.sigma_mean + config.sigma_std * normal).exp().clamp(LEAST_SIGMA, config.sigma_max)
        noisy = f + per_sample(sigma, f) * noise
        real = self.real[layer](noisy, sigma, labels, kept[0])
        fake = self.fake[layer](noisy, sigma, labels, kept[1])
        axes = (1, 2) if config.normaliser == "sample" else (0, 1, 2)
        normaliser = (f - real).abs().mean(dim=axes, keepdim=True).clamp_min(config.normaliser_floor)
        change = (fake - real) / normaliser
        rms = change.square().mean(dim=(1, 2)).sqrt()
        if config.clip:
            change = change * per_sample((config.clip / rms).clamp(max=1.0), change)
        return Pull(change, rms, sigma, real, fake, normaliser)

    @torch.no_grad()
    def weigh(self, rms: Tensor) -> Tensor:
        """Return the weights (J,) of the layers, after taking in the mean pulls (J,) of a global batch.

        A pull of one size on tokens * channels standardised features pulls the harder at pixels, the smaller the unit
        of the features; the weights undo that.
        """
        if not self.config.balance:
            return torch.ones_like(rms)
        self.count += 1
        calibrates = self.count <= self.config.balance_steps
        share = torch.where(calibrates, 1 / self.count, torch.clamp(1 / self.count, min=1 - _BALANCE_DECAY))
        self.strengths.lerp_(rms, share)
        sizes = torch.tensor([float(math.sqrt(tokens * channels)) for tokens, channels in self.shapes])
        units = torch.stack([scale.unit for scale in self.scales])  # type: ignore[misc]
        pulls = self.strengths / (units * sizes.to(units))
        self.target.copy_(torch.where(calibrates, pulls.mean(), self.target))
        # fresh denoisers agree exactly: nothing pulls, and there is nothing to balance
        weights = torch.where(pulls > 0, self.target / pulls.clamp_min(_LEAST_PULL), 1.0)
        return weights.clamp(_LEAST_BALANCE, _MOST_BALANCE)

    def denoising(
        self,
        layer: int,
        features: Tensor,
        normal: Tensor,
        noise: Tensor,
        labels: Tensor | None,
        *,
        real: bool,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Return each sample's loss (B,) of a denoiser of a layer. Arguments as of `pull`."""
        config, x = self.config, features.detach()
        sigma = (config.denoiser_mean + config.denoiser_std * normal).exp()
        net = (self.real if real else self.fake)[layer]
        guess = net(x + per_sample(sigma, x) * noise, sigma, labels, kept)
        weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()
        return weight * (guess - x).square().mean(dim=(1, 2))  # type: ignore[no-any-return]

    def running(self) -> list[Tensor]:
        """Return all statistics that run along."""
        return [
            self.strengths,
            self.target,
            self.count,
            *(buffer for scale in self.scales for buffer in scale.buffers()),
        ]

    def nets(self) -> list[ScoreNet]:
        """Return all denoisers."""
        return [*self.real, *self.fake]


def pull_loss(features: Tensor, change: Tensor) -> Tensor:
    """Return each sample's loss (B,) whose gradient at features (B, T, C) is their change, divided by T C."""
    return 0.5 * (features - (features - change).detach()).square().mean(dim=(1, 2))


class ScoreOptimizer:
    """AdamW for each denoiser, with a gradient norm of its own; a gradient that is not finite is skipped.

    Args:
        matching: whose denoisers learn.
        average: makes gradients those of the global batch.
    """

    def __init__(self, matching: ScoreMatching, average: Callable[[Tensor], Tensor]) -> None:
        self.matching, self._average = matching, average
        self._each = [
            torch.optim.AdamW(net.parameters(), lr=matching.config.lr, betas=(0.9, 0.95), weight_decay=0.0)
            for net in matching.nets()
        ]

    def step(self, lr: float) -> None:
        """Average, clip and apply the gradients that are there."""
        for net, optimizer in zip(self.matching.nets(), self._each, strict=True):
            learning = [parameter for parameter in net.parameters() if parameter.grad is not None]
            if not learning:
                continue
            joined = self._average(torch.cat([_gradient(each).flatten() for each in learning]))
            norm = torch.linalg.vector_norm(joined)
            scale = (self.matching.config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            if bool(norm.isfinite()):
                sizes = [each.numel() for each in learning]
                for parameter, part in zip(learning, (joined * scale).split(sizes), strict=True):
                    _gradient(parameter).copy_(part.view_as(parameter))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
            for parameter in learning:
                parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return moments and step counts, by denoiser, parameter and kind."""
        return {
            f"{number}|{index}|{key}": value
            for number, optimizer in enumerate(self._each)
            for index, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for number, optimizer in enumerate(self._each):
            found: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                of, index, key = name.split("|")
                if int(of) == number:
                    found.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": found})


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
