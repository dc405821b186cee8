"""What every generator of the family answers to, so that sampling, editing and evaluation are written once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import Condition
from spheregen.prior import Prior

Labels = Tensor | Condition | None
"""Class ids (B,), mixtures (B, num_classes + 1), a prepared condition of B samples, or None for the null class."""


@runtime_checkable
class SphereGenerator(Protocol):
    """A decoder from the sphere to images, with an encoder back.

    The sphere is that of the paper; a model of another `prior` has another latent space in its place.

    Few-step loops carry predictions from step to step: what `predict` makes of a point on the sphere, and `to_latent`
    the next point of. A prediction is an image where the model decodes and encodes at every step, or a clean latent
    where it denoises latents and images are decoded at the end. So, for every generator,

        decode(v) = to_image(predict(v))
        encode_raw(x) = to_latent(from_image(x))
        encode(x) = prior.project(encode_raw(x))

    Legend: B samples, C image channels, S image size, L = prod(latent_shape) numbers of a latent; predictions are
    (B, C, S, S) or (B, N, d). Labels are described in `spheregen.conditioning`; `labels=None` is the null class.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, S, S)."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent, (N, d)."""

    @property
    def num_classes(self) -> int:
        """Classes that labels may name; 0 for an unconditional generator. The null class is id `num_classes`."""

    @property
    def sigma_max(self) -> float:
        """The largest noise magnitude of training, tan(alpha_max): what schedules are fractions of."""

    @property
    def prior(self) -> Prior:
        """The latent space: how raw latents and noise enter it, and how noise moves points of it."""

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the networks compute; images and latents outside are float32, or float64 under float64."""

    @property
    def guidance_places(self) -> tuple[str, ...]:
        """The spaces that a step goes through, where guidance can act, in this order: that of predictions, then that of
        raw latents where it is another. `("pixel", "latent")` if predictions are images, `("latent",)` if latents."""

    def condition(self, labels: Tensor | None) -> Condition | None:
        """What the calls below take in place of `labels`, computed once; None for an unconditional generator."""

    def predict(self, latents: Tensor, labels: Labels = None) -> Tensor:
        """Points on the sphere (B, N, d) to predictions, in one pass of the network that generates."""

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        """Predictions to latents (B, N, d) before the sphere."""

    def to_image(self, prediction: Tensor) -> Tensor:
        """Predictions to images (B, C, S, S) in [-1, 1]; images stay the same tensor."""

    def from_image(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to predictions, as if the network had made them."""

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        """Two predictions as one: `first` where the mask of pixels (B or 1, 1, S, S) is 1, `second` where it is 0."""

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to latents (B, N, d) before the sphere."""

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to points on the sphere (B, N, d)."""

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        """Points on the sphere (B, N, d) to images in [-1, 1]."""


class GeneratorModule(SphereGenerator, Protocol):
    """A generator that is an `nn.Module`, as pipelines hold it: what they need of one beside the above."""

    @property
    def config(self) -> Any:
        """The architecture, a frozen dataclass."""

    def eval(self) -> Self: ...

    def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def predicts_images(model: SphereGenerator) -> bool:
    """Whether the predictions of a generator are images, and not latents."""
    return model.guidance_places[0] == "pixel"


def mix_images(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Two images (B, C, S, S) as one: `first` where the mask (B or 1, 1, S, S) is 1, `second` where it is 0."""
    return torch.lerp(second, first, mask.to(first.dtype))


def mix_tokens(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Two token grids (B, N, d) as one, by the mean of a mask of pixels (B or 1, 1, S, S) over the patch of each token.

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
        """Images (B, C, S, S) in [-1, 1] to normalised latents (B, N, d)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, N, d) to images (B, C, S, S), clamped to [-1, 1]."""
