"""A generator that predicts latents, in small: a denoiser on the sphere of a frozen linear tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import EmbedLabels, Labels
from spheregen.nn.block import ClassEmbedding
from spheregen.prior import PRIORS, Angle, PriorName
from spheregen.protocol import SphereGenerator
from spheregen.sphere import upcast
from tests.factories import shaken

PATCH, SIZE, CHANNELS = 4, 8, 4
GAIN = 0.2
"""Latent to pixel, so that hardly any pixel of a point on the sphere leaves [-1, 1]."""


class Projection(nn.Module):
    """Patches to tokens by a fixed basis of CHANNELS orthonormal patches, and back."""

    basis: Tensor

    def __init__(self, basis: Tensor, *, back: bool) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        if self.back:
            return functional.fold((GAIN * x @ self.basis.T).transpose(1, 2), SIZE, PATCH, stride=PATCH)
        return functional.unfold(x, PATCH, stride=PATCH).transpose(1, 2) @ self.basis / GAIN


class LinearTokenizer(nn.Module):
    """Images (B, 3, 8, 8) to tokens (B, 4, 4) and back; tokens are kept exactly, most of an image is not."""

    image_shape = (3, SIZE, SIZE)
    latent_shape = ((SIZE // PATCH) ** 2, CHANNELS)

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn(3 * PATCH**2, CHANNELS, generator=torch.Generator().manual_seed(7))
        basis = torch.linalg.qr(drawn).Q
        self.encoder, self.decoder = Projection(basis, back=False), Projection(basis, back=True)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.basis.dtype

    def encode(self, images: Tensor) -> Tensor:
        return upcast(self.encoder(images.to(self.dtype)))

    def decode(self, latents: Tensor) -> Tensor:
        return upcast(self.decoder(latents.to(self.dtype))).clamp(-1, 1)


class Denoiser(nn.Module):
    """Points on the sphere and embeddings (B, L) to clean latents; without weights it gives points back."""

    def __init__(self, numbers: int, *, identity: bool) -> None:
        super().__init__()
        self.linear = None if identity else nn.Linear(numbers, numbers)

    def forward(self, v: Tensor, embedding: Tensor | None) -> Tensor:
        if self.linear is None:
            return v
        inner = self.linear(v.flatten(1))
        return v * 0.3 + torch.tanh(inner if embedding is None else inner + embedding).view_as(v)


class LatentGenerator(SphereGenerator):
    """A prediction is a clean latent.

    Args:
        identity: the denoiser gives points back as they are.
    """

    guidance_places = ("latent",)
    alpha_max = 80.0

    def __init__(self, classes: int = 3, *, identity: bool = False, prior: PriorName = "sphere") -> None:
        super().__init__()
        self.config = {"classes": classes, "identity": identity}
        self.tokenizer = LinearTokenizer().eval()
        self.image_shape, self.latent_shape = self.tokenizer.image_shape, self.tokenizer.latent_shape
        numbers = math.prod(self.latent_shape)
        self.labels = ClassEmbedding(classes, numbers) if classes else None
        self.denoiser = Denoiser(numbers, identity=identity)
        self.num_classes, self.prior = classes, PRIORS[prior]

    @property
    def dtype(self) -> torch.dtype:
        return self.tokenizer.dtype

    def label_networks(self) -> Mapping[str, EmbedLabels]:
        return {} if self.labels is None else {"denoiser": self.labels}

    def predict(self, latents: Tensor, labels: Labels = None, angle: Angle = 0.0) -> Tensor:
        told = self.condition(labels).of("denoiser")
        return upcast(self.denoiser(latents.to(self.dtype), None if told is None else told.embedding))

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.tokenizer.decode(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)


def latent_generator(classes: int = 3, *, identity: bool = False, prior: PriorName = "sphere") -> LatentGenerator:
    """One with weights that are the same each time, and matter."""
    torch.manual_seed(0)
    return shaken(LatentGenerator(classes, identity=identity, prior=prior), 0.4).requires_grad_(False)
