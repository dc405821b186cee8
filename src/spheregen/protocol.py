"""The protocol of all generators of the family, so that sampling, editing and evaluation are written once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import Condition, EmbedLabels, Labels, make_condition
from spheregen.errors import ConfigError
from spheregen.fitted import FittedPrior
from spheregen.prior import PRIORS, SPHERE, Angle, Prior

PRIOR = "prior"
"""Among the networks of a condition, the fitted prior."""


@dataclass(frozen=True)
class Context:
    """The facts of a rough image that a refiner is told."""

    latent: Tensor
    """(B, N, d) the point that it was decoded from."""
    tokens: Tensor | None
    """(B, N, W) the decoder's last tokens; None of a generator that has none."""

    def __getitem__(self, part: slice) -> Context:
        return Context(self.latent[part], None if self.tokens is None else self.tokens[part])

    def twice(self) -> Context:
        """Return that of 2 B samples, the second half as the first."""
        return Context(torch.cat([self.latent] * 2), None if self.tokens is None else torch.cat([self.tokens] * 2))


class SphereGenerator(nn.Module):
    """A generator from a latent space to images, with an encoder back; every member of the family is one.

    Few-step loops carry predictions from step to step: what `predict` makes of a point, and `to_latent` the next point
    of. A prediction is an image where the model decodes and encodes at every step, or a clean latent where it denoises
    latents and images are decoded at the end. A member must set `image_shape`, `latent_shape` and `config`, and define
    `predict`. What else it may define has a default here: predictions are images, the model is unconditional.

    Args:
        config: sets all that it can: `image_size`, `image_channels`, `tokens`, `channels`, `num_classes`,
            `text_width`, `max_angle` and `prior` are its fields or properties; None: the member does it by itself.

    Legend: B samples, C image channels, S image size, L = prod(latent_shape) numbers of a latent; predictions are
    (B, C, S, S) or (B, N, d). Labels are described in `spheregen.conditioning`; `labels=None` is the null class.
    """

    image_shape: tuple[int, int, int]
    """The shape of one image, (C, S, S)."""
    latent_shape: tuple[int, ...]
    """The shape of one latent, (N, d)."""
    config: Any
    """The architecture, a frozen dataclass."""
    num_classes: int = 0
    """Classes that labels may name; 0 for an unconditional generator. The null class is id `num_classes`."""
    text_width: int = 0
    """Numbers D of the vectors of texts that it follows instead of classes, their tokens included; 0: none."""
    text_tokens: int = 0
    """Tokens of a text that its networks attend to, beside its vector."""
    alpha_max: float = 85.0
    """Degrees, 0 to 90: the angle that schedules start from, that of the strongest training noise or somewhat less."""
    max_angle: float = 90.0
    """Degrees: no step turns a point by more."""
    prior: Prior = SPHERE
    """The latent space, and the law by which noise moves its points."""
    token_width: int = 0
    """Channels W of the tokens of `predict_with_context`; 0 where there are none."""
    guidance_places: tuple[str, ...] = ("pixel", "latent")
    """The spaces that a step goes through, where guidance can act, in this order: that of predictions, then that of raw
    latents where it is another. `("pixel", "latent")` if predictions are images, `("latent",)` if latents."""
    guidance_law: str = "scale"
    """The law of guidance by a number: a `scale` of the difference to the null class, or a `rotation` away from it by
    degrees; a name in `sampling.GUIDANCES`."""
    unguided: float = 1.0
    """The number that is no guidance: a scale of 1, a rotation by 0 degrees."""
    reuses_noise: bool = False
    """Where all steps share one noise, it is that of the start; else another draw."""
    has_sampling_angle: bool = False
    """`start_angle` is `sampling_angle` of the config, which may be chosen anew after the training."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        if config is not None:
            self.config = config
            self.image_shape = config.image_channels, config.image_size, config.image_size
            self.latent_shape = config.tokens, config.channels
            self.num_classes, self.text_width = config.num_classes, getattr(config, "text_width", 0)
            self.text_tokens = getattr(config, "text_tokens", 0)
            self.alpha_max = config.max_angle
            self.prior = PRIORS[config.prior]
        self.fitted: FittedPrior | None = None
        """The density of the codes of its data, where one was fitted; no part of the weights."""
        self.refiner: nn.Module | None = None
        """The network of a flow that refines images, see `refined`; None where there is none."""

    @property
    def start_angle(self) -> float:
        """Degrees: what `predict` is told of a random point, the first of a loop."""
        return self.alpha_max

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the networks compute; images and latents outside are float32, or float64 under float64."""
        return next(self.parameters()).dtype

    @property
    def predicts_images(self) -> bool:
        """Predictions are images, not latents."""
        return self.guidance_places[0] == "pixel"

    @property
    def label_width(self) -> int:
        """Numbers of a label beside the weight of the null: of classes, or of a text's vector; 0: unconditional."""
        return self.num_classes or self.text_width

    @property
    def vector_width(self) -> int:
        """The same without the tokens of texts: what a fitted prior knows."""
        return self.label_width // (1 + self.text_tokens)

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        """Return, by the names of the networks that take a condition, what embeds labels for each."""
        return {}

    def condition(self, labels: Labels = None) -> Condition:
        """Return what labels mean for the networks, for all calls below; a condition stays as it is.

        Raises:
            ConfigError: labels of another shape, or for an unconditional generator.
        """
        if self.text_width and isinstance(labels, Tensor) and not labels.is_floating_point():
            raise ConfigError("this model follows texts, not classes: give prompts to a pipeline, or vectors of texts")
        networks = self.label_networks()
        if self.fitted is not None:
            networks = {**networks, PRIOR: self.fitted.embed_labels}
        return make_condition(labels, self.label_width, networks)

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        """Return the predictions for points (B, N, d), by one pass of the network that generates.

        Args:
            latents: points of the latent space.
            labels: or the condition.
            angle: radians, one number or (B,): how far noise moved the points. A network that is not told ignores it.
        """
        raise NotImplementedError

    def predict_with_context(
        self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0
    ) -> tuple[Tensor, Context | None]:
        """Return `predict`, and what a refiner is told of it, from the same pass."""
        return self.predict(latents, labels, angle), Context(latents, None)

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        """Return predictions as latents (B, N, d) before the sphere."""
        return prediction

    def to_image(self, prediction: Tensor) -> Tensor:
        """Return predictions as images (B, C, S, S) in [-1, 1]; images stay the same tensor."""
        return prediction

    def from_image(self, images: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [-1, 1] as predictions, as if the network had made them."""
        return images

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """Return two predictions as one: `first` where the mask of pixels (B or 1, 1, S, S) is 1, `second` where 0."""
        return mix_images(first, second, mask) if self.predicts_images else mix_tokens(first, second, mask)

    def refined(
        self, x: Tensor, times: Tensor, labels: Labels, context: Context | None, rough: Tensor | None = None
    ) -> Tensor:
        """Return the clean images (B, C, S, S) that the refiner sees in points of its path at times (B,)."""
        raise ConfigError("this model has no refiner; take a model of kind sphere-flow")

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Return images (B, C, S, S) in [-1, 1] as latents (B, N, d) before the sphere."""
        return self.to_latent(self.from_image(images), labels)

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Return images (B, C, S, S) in [-1, 1] as points of the latent space (B, N, d)."""
        return self.prior.project(self.encode_raw(images, labels))

    def decode(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        """Return points (B, N, d) as images (B, C, S, S) in [-1, 1].

        Args:
            latents: points of the latent space.
            labels: or the condition.
            angle: degrees, one number or (B,): how far noise moved the points.
        """
        radians = torch.deg2rad(angle.double()) if isinstance(angle, Tensor) else math.radians(angle)
        return self.to_image(self.predict(latents, labels, radians))

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Return images there and back: decode(encode(x))."""
        condition = self.condition(labels)
        return self.decode(self.encode(images, condition), condition)


def mix_images(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Return two images (B, C, S, S) as one: `first` where the mask (B or 1, 1, S, S) is 1, `second` where it is 0."""
    return torch.lerp(second, first, mask.to(first.dtype))


def mix_tokens(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Return two token grids (B, N, d) as one, by the mean of a mask (B or 1, 1, S, S) over the patch of each token.

    N is a square number, and tokens are in row-major order.
    """
    grid = math.isqrt(first.shape[1])
    share = functional.adaptive_avg_pool2d(mask.to(first.dtype), grid).flatten(2).transpose(1, 2)
    return torch.lerp(second, first, share)


@runtime_checkable
class Tokenizer(Protocol):
    """A frozen codec between images and token grids, whose latent space a latent denoiser lives in; an `nn.Module`.

    Latents are normalised: near mean 0 and variance 1 for each channel (or each number) over the images that the
    tokenizer was made for, so that they and Gaussian noise are of one size.

    Legend: B samples, C image channels, S image size, N = grid^2 tokens in row-major order, d channels of a token.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, S, S)."""

    @property
    def latent_shape(self) -> tuple[int, int]:
        """The shape of one latent, (N, d); N is a square number."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the networks compute; images and latents outside are float32, or float64 under float64."""

    def encode(self, images: Tensor) -> Tensor:
        """Return images (B, C, S, S) in [-1, 1] as normalised latents (B, N, d)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return normalised latents (B, N, d) as images (B, C, S, S), clamped to [-1, 1]."""
