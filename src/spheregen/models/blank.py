"""Generators of given architectures with fresh weights: for estimates of memory and cost, mostly on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spheregen.models.autoencoder import SphereAutoencoder
from spheregen.models.flow_refiner import FlowRefiner, FlowRefinerConfig, RefinedGenerator, decoder_width
from spheregen.models.latent_denoiser import LatentDenoiser, LatentDenoiserConfig, LatentGenerator
from spheregen.models.protocol import GeneratorModule


def blank_generator(config: Any, front: Any = None) -> GeneratorModule:
    """A generator of this architecture with fresh weights on the current device; a denoiser has no tokenizer, and
    decodes to grey.

    Args:
        config: of a Sphere Encoder, a latent denoiser or a refiner.
        front: of a refiner, the architecture of the generator in front of it.
    """
    if isinstance(config, FlowRefinerConfig):
        source = blank_generator(front)
        refiner = FlowRefiner(config.completed(tuple(source.latent_shape), decoder_width(source)))
        return RefinedGenerator(source, refiner)
    if isinstance(config, LatentDenoiserConfig):
        return LatentGenerator(LatentDenoiser(config), _NoTokenizer(config))
    return SphereAutoencoder(config)


class _NoTokenizer(nn.Module):
    def __init__(self, config: LatentDenoiserConfig) -> None:
        super().__init__()
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        self.latent_shape = (config.tokens, config.channels)
        self.dtype = torch.float32

    def encode(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), *self.latent_shape)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.new_zeros(len(latents), *self.image_shape)
