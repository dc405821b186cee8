"""A generator that predicts latents, in small: a denoiser on the sphere of a frozen linear tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spheregen.conditioning import ClassEmbedding
from spheregen.models.protocol import Labels, mix_tokens
from spheregen.prior import PRIORS, Prior, PriorName
from spheregen.sphere import angle_to_sigma, upcast

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


@dataclass(frozen=True)
class Embedded:
    """The embedding (B, L) of labels; a `Condition`."""

    embedding: Tensor

    def rows(self, index: Tensor) -> Embedded:
        return Embedded(self.embedding[index])


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


class LatentGenerator(nn.Module):
    """Answers to `SphereGenerator`: a prediction is a clean latent.

    Args:
        identity: the denoiser gives points back as they are.
    """

    def __init__(self, classes: int = 3, *, identity: bool = False, prior: PriorName = "sphere") -> None:
        super().__init__()
        self.config = {"classes": classes, "identity": identity}
        self.tokenizer = LinearTokenizer().eval()
        numbers = math.prod(self.latent_shape)
        self.labels = ClassEmbedding(classes, numbers) if classes else None
        self.denoiser = Denoiser(numbers, identity=identity)
        self.num_classes, self.prior_name = classes, prior

    @property
    def prior(self) -> Prior:
        return PRIORS[self.prior_name]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.tokenizer.image_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.tokenizer.latent_shape

    @property
    def sigma_max(self) -> float:
        return angle_to_sigma(80)

    @property
    def dtype(self) -> torch.dtype:
        return self.tokenizer.dtype

    @property
    def guidance_places(self) -> tuple[str, ...]:
        return ("latent",)

    def condition(self, labels: Tensor | None) -> Embedded | None:
        if self.labels is None:
            if labels is not None:
                raise ValueError("this model is unconditional and takes no labels")
            return None
        return Embedded(self.labels(labels, 1 if labels is None else len(labels)))

    def predict(self, latents: Tensor, labels: Labels = None) -> Tensor:
        condition = labels if isinstance(labels, Embedded) else self.condition(labels)  # type: ignore[arg-type]
        embedding = None if condition is None else condition.embedding
        return upcast(self.denoiser(latents.to(self.dtype), embedding))

    def to_latent(self, prediction: Tensor, labels: Labels = None) -> Tensor:
        return prediction

    def to_image(self, prediction: Tensor) -> Tensor:
        return self.tokenizer.decode(prediction)

    def from_image(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)

    def mix(self, first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
        return mix_tokens(first, second, mask)

    def encode_raw(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.to_latent(self.from_image(images), labels)

    def encode(self, images: Tensor, labels: Labels = None) -> Tensor:
        return self.prior.project(self.encode_raw(images, labels))

    def decode(self, latents: Tensor, labels: Labels = None) -> Tensor:
        return self.to_image(self.predict(latents, labels))


def latent_generator(classes: int = 3, *, identity: bool = False, prior: PriorName = "sphere") -> LatentGenerator:
    """One with weights that are the same each time, and matter."""
    torch.manual_seed(0)
    model = LatentGenerator(classes, identity=identity, prior=prior)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)
