"""The record of the convolutional Sphere Encoder."""

from __future__ import annotations

from typing import Literal

from spheregen.family.convolutional.network import ConvolutionalAutoencoder, ConvolutionalConfig
from spheregen.family.sphere_encoder.member import ImageAutoencoderRecipe, autoencoder_member


class ConvolutionalRecipe(ImageAutoencoderRecipe):
    """A convolutional Sphere Encoder under the loss of system 1."""

    kind: Literal["convolutional"] = "convolutional"
    model: ConvolutionalConfig


MEMBER = autoencoder_member(
    ConvolutionalAutoencoder,
    kind="convolutional",
    title="A spherical image generator (convolutional Sphere Encoder, after arXiv 2602.15030)",
    tags=("image-generation", "sphere-encoder", "convolutional"),
    config=ConvolutionalConfig,
    recipe=ConvolutionalRecipe,
)
