"""Resizing against loops and Pillow, normalisation, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.measure.features import preprocessing
from spheregen.measure.features.preprocessing import antialiased, check_images, tf1_bilinear


def noise_images(count: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).to(torch.uint8)


def tf1_by_loops(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow 1's rule, pixel by pixel, for one channel (H, W) of float64."""
    height, width = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        y = i * height / size
        top, bottom = math.floor(y), min(math.floor(y) + 1, height - 1)
        for j in range(size):
            x = j * width / size
            left, right = math.floor(x), min(math.floor(x) + 1, width - 1)
            above = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            below = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[i, j] = above * (1 - (y - top)) + below * (y - top)
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(7, 5, 13), (12, 16, 5), (1, 3, 4)])
def test_tf1_bilinear_follows_the_rule(height: int, width: int, size: int) -> None:
    images = noise_images(2, 3, height, width)
    found = tf1_bilinear(images, size)
    assert found.shape == (2, 3, size, size)
    assert found.dtype == torch.float32
    for image, resized in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        np.testing.assert_allclose(resized.numpy(), tf1_by_loops(image.double().numpy(), size), atol=1e-3)


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (100, 80, 32), (40, 40, 31)])
def test_antialiased_is_pillows_filter(height: int, width: int, size: int) -> None:
    images = noise_images(1, 3, height, width)
    pixels = images[0].permute(1, 2, 0).numpy()
    pillow = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    rounded = antialiased(images, size, "bicubic", eight_bit=True)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(rounded, np.round(rounded))
    difference = np.abs(rounded - pillow)
    assert difference.max() <= 1  # Pillow's weights are fixed-point numbers
    assert (difference == 0).mean() > 0.99
    kinds: list[preprocessing.Filter] = ["bilinear", "bicubic"]
    for kind in kinds:
        floating = Image.fromarray(images[0, 0].float().numpy())
        exact = np.asarray(floating.resize((size, size), Image.Resampling[kind.upper()])).clip(0, 255)
        np.testing.assert_allclose(antialiased(images, size, kind)[0, 0], exact, atol=2e-3)


def test_other_images_are_refused() -> None:
    for images in (torch.rand(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(0, 3, 8, 8).byte()):
        with pytest.raises(ConfigError):
            check_images(images)
