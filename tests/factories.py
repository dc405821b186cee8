"""Small things that tests of all kinds need: models, pipelines, folders of images, recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import spheregen as sg
from spheregen.family.sphere_encoder.network import AutoencoderConfig, SphereAutoencoder
from spheregen.family.sphere_flow.network import FlowRefiner, FlowRefinerConfig, RefinedGenerator
from spheregen.folders.model_folder import ModelInfo, save_model
from spheregen.networks.text.ngrams import NgramEncoder
from spheregen.nn.sizes import TransformerSize
from spheregen.training.recipe import Recipe, load_recipe

SIZE = TransformerSize(width=16, depth=1, heads=2)
NAMES = ("cat", "dog", "horse")
KINDS = ("images", "latents")
"""What the generator of `tiny_pipeline` predicts."""
DEBUG_RECIPES: Mapping[str, str] = {
    "autoencoder": "debug",
    "convolutional": "conv-debug",
    "latent-denoiser": "sle-debug",
    "representation": "rae-debug",
    "sphere-flow": "flow-debug",
}
"""Kind of recipe -> the shipped one that trains in seconds."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in [0, 1), the same each time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def images_of(count: int = 3, size: int = 8, channels: int = 3, seed: int = 0) -> Tensor:
    """Random images of 8 bits, (count, channels, size, size) in [0, 1]."""
    return (rand(count, channels, size, size, seed=seed) * 255).round() / 255


Net = TypeVar("Net", bound=nn.Module)


def shaken(model: Net, by: float = 0.2) -> Net:
    """The model with noise on all weights, so that every input and option shows in its images."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_autoencoder(**config: Any) -> SphereAutoencoder:
    """An autoencoder of 8 px images and 4 tokens of 4 channels, with 3 classes; `config` changes its configuration."""
    torch.manual_seed(0)
    small = {"image_size": 8, "patch_size": 4, "encoder": SIZE, "decoder": SIZE, "latent_channels": 4, "num_classes": 3}
    model = SphereAutoencoder(
        AutoencoderConfig(**{**small, "encoder_mixer_depth": 1, "decoder_mixer_depth": 1, **config})
    )
    shaken(model)
    return model


def tiny_refined(**config: Any) -> RefinedGenerator:
    """A tiny autoencoder with a flow behind it; `config` changes the configuration of the refiner."""
    source = tiny_autoencoder()
    torch.manual_seed(0)
    small = FlowRefinerConfig(**{"image_size": 8, "patch_size": 4, "size": SIZE, "num_classes": 3, **config})
    refiner = FlowRefiner(small.completed(tuple(source.latent_shape), SIZE.width))
    shaken(refiner)
    return RefinedGenerator(source, refiner)


def tiny_pipeline(classes: int = 3, kind: str = "images", **config: Any) -> sg.Pipeline:
    """A pipeline on the CPU of a tiny model that predicts images, or latents; two steps and guidance by default."""
    from tests.sampling.latent_generator import latent_generator

    info = ModelInfo(class_names=NAMES[:classes], sampling={"steps": 2, "guidance": 1.3 if classes else 1.0})
    model = (
        latent_generator(classes, **config) if kind == "latents" else tiny_autoencoder(num_classes=classes, **config)
    )
    return sg.Pipeline(model, info, device="cpu")


def tiny_text_pipeline() -> sg.Pipeline:
    """A pipeline on the CPU of a tiny model that follows texts, by our own text encoder."""
    info = ModelInfo(text=NgramEncoder(32).identity, sampling={"steps": 2, "guidance": 1.3})
    return sg.Pipeline(tiny_autoencoder(num_classes=0, text_width=32), info, device="cpu")


def tiny_model_folder(folder: Path, class_names: tuple[str, ...] = tuple("0123456789")) -> Path:
    """A model folder of 8 px grey images, as the digits are, whose images show every option."""
    model = tiny_autoencoder(image_channels=1, num_classes=len(class_names))
    save_model(folder, model, ModelInfo(class_names=class_names, sampling={"steps": 2, "guidance": 1.2}))
    return folder


def image_folder(path: Path, classes: int = 2, per_class: int = 3, size: int = 8, mode: str = "RGB") -> Path:
    """A folder of PNGs in a sub-folder for each class, named 0, 1, ...; one flat folder with `classes` 0."""
    generator = np.random.default_rng(0)
    for number in range(max(1, classes) * per_class):
        name = f"{number % classes}/{number:03d}.png" if classes else f"{number:03d}.png"
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path / name)
    return path


def tiny_recipe(kind: str = "autoencoder", **settings: Any) -> Recipe:
    """The debug recipe of a kind, two steps long; `settings` are dotted keys with `__` for the dot."""
    given = {"train.steps": 2, "train.preview_every": 0, "optimizer.warmup_steps": 0}
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    return load_recipe(DEBUG_RECIPES[kind], [f"{key}={value}" for key, value in given.items()])
