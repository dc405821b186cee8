"""What the caller set as torch's defaults changes nothing: images, codes, training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import spheregen as sg
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train


def made(pipe: sg.Pipeline) -> list[Tensor]:
    """What every way through a pipeline gives."""
    images = pipe.generate(2, seed=5, steps=3, guidance=1.4).tensor
    lower = np.zeros((8, 8), dtype=np.uint8)
    lower[4:] = 255
    points = pipe.encode(images.numpy().transpose(0, 2, 3, 1), labels=[1, 2])
    return [
        images,
        points,
        pipe.decode(points, labels=3),
        pipe.reconstruct(images),
        pipe.edit(images, labels=2).trajectory[0],
        pipe.crossover(images[:1], images[1:], mask="diagonal").tensor,
        pipe.vary(images[:1], 2, steps=2).tensor,
        pipe.inpaint(images, lower).tensor,
        pipe.upscale(images, 2).tensor,
        pipe.interpolate([3, 14], 3, path="lerp").tensor,
        next(iter(pipe.stream([2**40]))).tensor,
        sg.sampling.sample(sg.load("digits"), points, steps=2, generator=torch.Generator("cpu").manual_seed(1)).images,
    ]


@pytest.fixture(params=[torch.float64, torch.float16, "meta"])
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    known = made(sg.Pipeline.from_pretrained("digits", quiet=True))
    request.node.known = known
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.usefixtures("defaults")
def test_images_are_the_same_and_the_defaults_stay(request: pytest.FixtureRequest) -> None:
    before = torch.get_default_dtype(), torch.get_default_device()
    found = made(sg.Pipeline.from_pretrained("digits", quiet=True))
    for one, other in zip(found, request.node.known, strict=True):
        assert one.dtype == torch.float32 and one.device.type == "cpu"
        assert torch.equal(one, other)
    with pytest.raises(sg.SphereGenError):
        sg.Pipeline.from_pretrained("digits", quiet=True).generate(0)
    assert before == (torch.get_default_dtype(), torch.get_default_device())


def test_training_is_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("debug", ["train.steps=2"])
    train(recipe, tmp_path / "plain", device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        torch.set_default_device("meta")
        train(recipe, tmp_path / "changed", device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "changed")]
    assert weights[0] == weights[1]
