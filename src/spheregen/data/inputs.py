"""Images as people hand them over: PIL images, paths, arrays and tensors of any size, alone or many."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image

from spheregen.data.grids import to_pil
from spheregen.data.images import load_image
from spheregen.errors import ConfigError
from spheregen.pixels import ImageOptions, read_image, to_mode

ImageInput = Image.Image | str | Path | npt.NDArray[Any] | torch.Tensor
"""One image: a PIL image, a path, an array (H, W) or (H, W, C), or a tensor (C, H, W). Arrays and tensors hold uint8
or floats in [0, 1]; C is 1 or 3."""
ImageInputs = ImageInput | Sequence[ImageInput]
"""One image or many; arrays (B, H, W, C) and tensors (B, C, H, W) are many."""

_TOLERANCE = 1e-3  # what rounding may add to a value in [0, 1]


def open_images(images: ImageInputs) -> list[Image.Image | torch.Tensor]:
    """Open images one by one: PIL images, decoded, or float32 tensors (C, H, W) in [0, 1].

    Raises:
        DataError: a file is missing or no image.
        ConfigError: no image at all, or an array of another shape, type or range.
    """
    if isinstance(images, Image.Image | str | Path):
        images = [images]
    elif isinstance(images, np.ndarray | torch.Tensor):
        images = list(images) if images.ndim == 4 else [images]
    opened = [_open(image) for image in (images if isinstance(images, Iterable) else [images])]
    if not opened:
        raise ConfigError("no images were given")
    return opened


def load_images(images: ImageInputs, options: ImageOptions) -> torch.Tensor:
    """Load images as one batch (B, C, S, S) float32 in [0, 1].

    A tensor or array that has the right shape already is taken as it is; everything else goes through 8 bits, as files
    do, and is cropped or padded and resized by `options`. Raises what `open_images` raises.
    """
    return torch.stack([_load(image, options) for image in open_images(images)])


def load_whole(images: ImageInputs, options: ImageOptions) -> torch.Tensor:
    """Load images of one size as a batch (B, C, H, W) float32 in [0, 1], as large as they are.

    Raises what `open_images` raises; a ConfigError where their sizes differ.
    """
    loaded = []
    for opened in open_images(images):
        if not isinstance(opened, torch.Tensor) or opened.shape[0] != options.channels:
            image = to_pil(opened[None])[0] if isinstance(opened, torch.Tensor) else opened
            pixels = np.asarray(to_mode(image, options), dtype=np.uint8)
            opened = torch.from_numpy(np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))) / 255
        loaded.append(opened.cpu())
    if len({image.shape for image in loaded}) > 1:
        raise ConfigError("images that stay as large as they are go in a call of their own where their sizes differ")
    return torch.stack(loaded)


def load_mask(mask: ImageInput, images: ImageInputs, options: ImageOptions) -> torch.Tensor:
    """Load a mask for images, (1, 1, S, S) float32 in [0, 1]: white is 1.

    It has the size of the images and is cropped and resized as they are, or it has the model's size S; else a
    ConfigError is raised.
    """
    opened, *others = open_images(mask)
    if others:
        raise ConfigError(f"one mask serves all images, not {1 + len(others)}; give one")
    size = (options.image_size, options.image_size)
    for number, image in enumerate(open_images(images)):
        if _size(opened) not in (_size(image), size):
            drawn, picture, own = (f"{width} x {height}" for width, height in (_size(opened), _size(image), size))
            raise ConfigError(
                f"a mask of {drawn} pixels fits neither picture {number} of {picture} nor the model's {own}"
            )
    grey = dataclasses.replace(options, channels=1, background=(0, 0, 0))
    return _load(opened, grey)[None]


def deciding_side(image: Image.Image | torch.Tensor, options: ImageOptions) -> int:
    """Return the side in pixels that becomes the model's size: the shorter one, or the longer one of what is padded."""
    return min(_size(image)) if options.fit == "crop" else max(_size(image))


def _open(image: ImageInput) -> Image.Image | torch.Tensor:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "biuf":
            raise ConfigError(f"a picture of {image.dtype} has no known range; give uint8, or floats in [0, 1]")
        native = np.float32 if image.dtype.kind == "f" and image.dtype.itemsize > 8 else image.dtype.newbyteorder("=")
        # a copy in the byte order of the machine: arrays of PIL images are read-only
        values = torch.from_numpy(np.array(image, dtype=native, order="C", subok=False))
        values = values[None] if values.ndim == 2 else values.movedim(-1, 0) if values.ndim == 3 else values
        layout = "(H, W), (H, W, C)"
    elif isinstance(image, torch.Tensor):
        values, layout = image.detach(), "(C, H, W)"
    else:
        raise ConfigError(f"a {type(image).__name__} is no picture; give a PIL image, a path, an array or a tensor")
    if values.ndim != 3 or values.shape[0] not in (1, 3) or not values.numel():
        shape = tuple(image.shape)
        raise ConfigError(f"a picture has shape {shape}; give {layout} or a batch of these, with 1 or 3 channels")
    if values.dtype in (torch.uint8, torch.bool):
        return values.float() / (255 if values.dtype == torch.uint8 else 1)
    if not values.is_floating_point():
        raise ConfigError(f"a picture of {values.dtype} has no known range; give uint8, or floats in [0, 1]")
    values = values.float()
    low, high = float(values.min()), float(values.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also true for NaN
        raise ConfigError(f"a picture has values from {low:g} to {high:g}; give floats in [0, 1], or uint8")
    return values


def _load(image: Image.Image | torch.Tensor, options: ImageOptions) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        if tuple(image.shape) == options.shape:
            return image.cpu()
        (image,) = to_pil(image[None])
    return load_image(image, options).float() / 255


def _size(image: Image.Image | torch.Tensor) -> tuple[int, int]:
    """Return width and height in pixels, as people see the image: upright."""
    if isinstance(image, torch.Tensor):
        return image.shape[2], image.shape[1]
    width, height = image.size
    with contextlib.suppress(Exception):  # broken EXIF data says nothing about orientation
        if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            return height, width
    return width, height
