"""Tiny pipelines of every generator of the family, for exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

import spheregen as sg
from spheregen.conditioning import text_labels
from spheregen.family import (
    ConvolutionalAutoencoder,
    ConvolutionalConfig,
    LatentDenoiser,
    LatentDenoiserConfig,
    LatentGenerator,
    SphereEncoder2,
    SphereEncoder2Config,
)
from spheregen.family.sphere_encoder.network import SphereTokenizer
from spheregen.fitted import fit_prior, fit_text_prior
from spheregen.folders.model_folder import ModelInfo
from spheregen.networks.text import NgramEncoder
from tests.factories import NAMES, SIZE, shaken, tiny_autoencoder, tiny_pipeline, tiny_refined


def with_prior(pipe: sg.Pipeline) -> sg.Pipeline:
    """The pipeline with a prior fitted to some of its points."""
    model = pipe.model
    drawn = torch.randn(200, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % model.num_classes if model.num_classes else None
    model.fitted = fit_prior(model.prior.project(drawn + 1), labels, model.num_classes)
    return pipe


def convolutional(classes: int = 3) -> sg.Pipeline:
    """A grey convolutional autoencoder of 16 px with a fitted prior, which it samples by default."""
    torch.manual_seed(0)
    config = ConvolutionalConfig(
        image_size=16, image_channels=1, width=8, embedding=16, latent_channels=24, num_classes=classes
    )
    model = shaken(ConvolutionalAutoencoder(config), 0.05)
    sampling = {"steps": 2, "guidance": 1.2 if classes else 1.0, "prior": "fitted"}
    info = ModelInfo(class_names=NAMES[:classes], sampling=sampling, provenance={"license": "CC0-1.0"})
    return with_prior(sg.Pipeline(model, info, device="cpu", name="tiny"))


def texts() -> sg.Pipeline:
    """The same, which follows texts by our own encoder."""
    torch.manual_seed(0)
    config = ConvolutionalConfig(
        image_size=16, image_channels=1, width=8, embedding=16, latent_channels=24, text_width=32
    )
    model, encoder = shaken(ConvolutionalAutoencoder(config), 0.05), NgramEncoder(32)
    drawn = torch.randn(200, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    told = text_labels(encoder.encode([f"number {i % 7}" for i in range(200)]))
    model.fitted = fit_text_prior(model.prior.project(drawn + 1), told)
    info = ModelInfo(text=encoder.identity, sampling={"steps": 2, "guidance": 1.2, "prior": "fitted"})
    return sg.Pipeline(model, info, device="cpu", name="texts")


def latents() -> sg.Pipeline:
    """A denoiser of the latents of an autoencoder."""
    tokenizer = SphereTokenizer(tiny_autoencoder(num_classes=0))
    tokens, channels = tokenizer.latent_shape
    torch.manual_seed(0)
    config = LatentDenoiserConfig(image_size=8, tokens=tokens, channels=channels, size=SIZE, num_classes=3)
    model = LatentGenerator(shaken(LatentDenoiser(config)), tokenizer)
    return sg.Pipeline(model, ModelInfo(class_names=NAMES, sampling={"steps": 2, "guidance": 1.3}), device="cpu")


def refined() -> sg.Pipeline:
    """An autoencoder with a flow behind it."""
    info = ModelInfo(class_names=NAMES, sampling={"steps": 2, "guidance": 1.3, "refinement_steps": 2})
    return sg.Pipeline(tiny_refined(), info, device="cpu")


def second() -> sg.Pipeline:
    """A Sphere Encoder 2, guided by rotation."""
    torch.manual_seed(0)
    small = {"image_size": 8, "patch_size": 4, "encoder": SIZE, "decoder": SIZE, "latent_channels": 4, "num_classes": 3}
    model = shaken(SphereEncoder2(SphereEncoder2Config(**small)))  # type: ignore[arg-type]
    return sg.Pipeline(model, ModelInfo(class_names=NAMES, sampling={"steps": 3, "guidance": 10.0}), device="cpu")


MEMBERS: Mapping[str, Callable[[], sg.Pipeline]] = {
    "autoencoder": lambda: with_prior(tiny_pipeline()),
    "unconditional": lambda: tiny_pipeline(0),
    "convolutional": convolutional,
    "latent-denoiser": latents,
    "sphere-flow": refined,
    "sphere-encoder-2": second,
}
