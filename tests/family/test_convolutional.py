"""The convolutional Sphere Encoder: any size it promises, one vector or a grid, and all that every member does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import spheregen as sg
from spheregen.errors import ConfigError
from spheregen.family import ConvolutionalAutoencoder, ConvolutionalConfig
from spheregen.folders.tokenizers import open_tokenizer
from spheregen.nn.linear import DECAY, ENCODER, NO_DECAY, tags_of
from tests.factories import images_of, shaken
from tests.training.runs import assert_same_run, interrupted, log, run

BASE = ConvolutionalConfig(image_size=16, image_channels=1, width=8, embedding=8, latent_channels=6, num_classes=3)


def network(**changes: Any) -> ConvolutionalAutoencoder:
    torch.manual_seed(0)
    return shaken(ConvolutionalAutoencoder(dataclasses.replace(BASE, **changes)), by=0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("conv") / "run", recipe="conv-debug")


@torch.no_grad()
def test_every_size_and_latent_goes_there_and_back() -> None:
    sizes = ((8, 1), (28, 1), (28, 7), (32, 4), (48, 1), (128, 1))
    for (size, grid), upsample in zip(sizes, ("nearest", "transposed", "shuffle") * 2, strict=True):
        for classes, channels in ((0, 1), (3, 3)):
            options = {"image_size": size, "latent_grid": grid, "num_classes": classes, "image_channels": channels}
            model = network(**options, upsample=upsample)
            images = images_of(2, size, channels) * 2 - 1
            labels = torch.tensor([0, 2]) if classes else None
            points = model.encode(images, labels)
            assert points.shape == (2, grid**2, 6)
            torch.testing.assert_close(points.square().mean((1, 2)), torch.ones(2), atol=1e-3, rtol=0)
            assert model.decode(points, labels).shape == images.shape
    for size, patch, bottom in ((16, 4, 4), (32, 4, 4), (56, 4, 7), (64, 8, 4)):
        model = network(image_size=size, patch=patch)
        assert model.config.bottom == bottom
        images = images_of(2, size, 1) * 2 - 1
        assert model(images, torch.tensor([0, 2])).shape == images.shape


@torch.no_grad()
def test_classes_and_points_matter_and_an_image_is_alone_in_its_batch() -> None:
    model, images = network(), images_of(4, 16, 1) * 2 - 1
    labels = torch.tensor([0, 1, 2, 3])
    points = model.encode(images, labels)
    assert not torch.allclose(points, model.encode(images, labels.flip(0)))
    made = model.decode(points, labels)
    assert not torch.allclose(made, model.decode(points, labels.flip(0)))
    assert not torch.allclose(made, model.decode(points.flip(0), labels))
    torch.testing.assert_close(model.decode(points[2:3], labels[2:3]), made[2:3], atol=1e-5, rtol=1e-5)
    mixtures = torch.eye(4)
    torch.testing.assert_close(model.decode(points, mixtures), made, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns_and_has_its_tags() -> None:
    model = network()
    model(images_of(2, 16, 1) * 2 - 1, torch.tensor([0, 1])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert len(tags_of(parameter) & {DECAY, NO_DECAY}) == 1, name
        assert (ENCODER in tags_of(parameter)) == name.startswith("encoder."), name


def test_a_run_learns_continues_to_the_bit_and_samples(whole: Path, tmp_path: Path) -> None:
    entries = log(whole)
    assert entries[-1]["loss"] < 0.8 * entries[0]["loss"]
    run(interrupted(tmp_path / "run", recipe="conv-debug", stop=13), recipe="conv-debug")
    assert_same_run(tmp_path / "run", whole)
    pipe = sg.Pipeline.from_pretrained(whole, device="cpu", quiet=True)
    made = pipe.generate(4, steps=3, guidance=1.3, seed=5)
    alone = pipe.generate(1, steps=3, guidance=1.3, seed=6)
    torch.testing.assert_close(alone.tensor[0], made.tensor[1], atol=2e-5, rtol=0)
    assert pipe.edit(made.tensor, labels=3).tensor.shape == (4, 1, 8, 8)
    assert len(pipe.interpolate(made.tensor[:2], frames=3)) == 3


def test_a_trained_one_is_a_tokenizer(whole: Path) -> None:
    tokenizer = open_tokenizer(whole).tokenizer
    assert tokenizer.latent_shape == (1, 16)
    latents = tokenizer.encode(images_of(2, 8, 1) * 2 - 1)
    assert tokenizer.decode(latents).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 30}, "multiple of 4"),
        ({"image_size": 36, "patch": 8}, "multiple of 8"),
        ({"patch": 3}, "2, 4, 8"),
        ({"image_size": 4}, "at least 8"),
        ({"width": 12}, "multiple of 8"),
        ({"latent_grid": 2}, "is 1 \\(one vector\\) or 4"),
        ({"max_angle": 0}, "max_angle"),
        ({"max_angle": float("nan")}, "max_angle"),
        ({"blocks": 0}, "blocks is at least 1"),
        ({"image_channels": 4}, "3 or 1"),
        ({"upsample": "neares"}, "did you mean 'nearest'"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(BASE, **changes)
