"""Resizing against loops and Pillow, normalisation, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spheregen.errors import ConfigError
from spheregen.evaluation.features import preprocessing
from spheregen.evaluation.features.preprocessing import antialiased, as_colour, check_images, normalised, tf1_bilinear
from tests.evaluation.features.conftest import random_images


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


@pytest.mark.parametrize(("height", "width", "size"), [(4, 4, 9), (7, 5, 13), (12, 16, 5), (1, 3, 4), (8, 8, 8)])
def test_tf1_bilinear_follows_the_rule(height: int, width: int, size: int) -> None:
    images = noise_images(2, 3, height, width)
    found = tf1_bilinear(images, size)
    assert found.shape == (2, 3, size, size)
    assert found.dtype == torch.float32
    for image, resized in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        np.testing.assert_allclose(resized.numpy(), tf1_by_loops(image.double().numpy(), size), atol=1e-3)


def test_tf1_bilinear_aligns_the_upper_left_corner_alone() -> None:
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(1, 1, 32, 32)  # value 8 * column
    found = tf1_bilinear(ramp, 299)[0, 0, 0]
    place = torch.arange(299) * 32 / 299
    torch.testing.assert_close(found, (8 * place).clamp(max=248), atol=1e-3, rtol=0)
    # Half-pixel centres, as torch and Pillow have them, would start lower and end higher.
    other = torch.nn.functional.interpolate(ramp.float(), size=(299, 299), mode="bilinear", align_corners=False)
    assert (found - other[0, 0, 0]).abs().max() > 3


def test_tf1_bilinear_keeps_an_image_of_the_size() -> None:
    images = noise_images(1, 3, 299, 299)
    assert torch.equal(tf1_bilinear(images, 299), images.float())


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


def test_bicubic_stays_within_eight_bits() -> None:
    edge = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255
    found = antialiased(edge, 64, "bicubic")
    assert found.min() == 0
    assert found.max() == 255
    assert ((found > 0) & (found < 255) & (found != found.round())).any()


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_an_image_of_the_size_is_kept(kind: preprocessing.Filter) -> None:
    images = noise_images(2, 3, 32, 32)
    assert torch.equal(antialiased(images, 32, kind), images.float())


def test_normalised_is_per_channel() -> None:
    images = noise_images(2, 3, 4, 4)
    found = normalised(images, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        expected = (images[:, channel].float() / 255 - mean) / std
        torch.testing.assert_close(found[:, channel], expected)


def test_colour_is_kept_and_grey_repeated() -> None:
    colour, grey = random_images(2), random_images(2, 1)
    assert as_colour(colour) is colour
    assert torch.equal(as_colour(grey), torch.cat([grey] * 3, dim=1))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 3, 8, 8), "type uint8, not float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"not \(3, 8, 8\)"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), r"not \(2, 2, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"not \(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), r"not \(1, 3, 0, 8\)"),
    ],
)
def test_other_images_are_refused_in_one_line(images: Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_images(images)
    assert "\n" not in str(caught.value)
