"""Pictures as people hand them over: PIL images, paths, arrays and tensors of any size, alone or many."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image

from spheregen.data.grids import to_pil
from spheregen.data.images import ImageOptions, load_image, read_image
from spheregen.errors import ConfigError

Picture = Image.Image | str | Path | npt.NDArray[Any] | torch.Tensor
"""One picture: a PIL image, a path, an array (H, W) or (H, W, C), or a tensor (C, H, W). Arrays and tensors hold uint8
or floats in [0, 1]; C is 1 or 3."""
Pictures = Picture | Sequence[Picture]
"""One picture or many; arrays (B, H, W, C) and tensors (B, C, H, W) are many."""

_TOLERANCE = 1e-3  # what rounding may add to a value in [0, 1]


def open_pictures(pictures: Pictures) -> list[Image.Image | torch.Tensor]:
    """Pictures one by one: PIL images, decoded, or float32 tensors (C, H, W) in [0, 1].

    Raises:
        DataError: a file is missing or no picture.
        ConfigError: no picture at all, or an array of another shape, type or range.
    """
    if isinstance(pictures, Image.Image | str | Path):
        pictures = [pictures]
    elif isinstance(pictures, np.ndarray | torch.Tensor):
        pictures = list(pictures) if pictures.ndim == 4 else [pictures]
    opened = [_open(picture) for picture in pictures]
    if not opened:
        raise ConfigError("no images were given")
    return opened


def load_pictures(pictures: Pictures, options: ImageOptions) -> torch.Tensor:
    """Pictures as one batch (B, C, S, S) float32 in [0, 1].

    A tensor or array that has the right shape already is taken as it is; everything else goes through 8 bits, as files
    do, and is cropped or padded and resized by `options`.

    Raises:
        DataError, ConfigError: as `open_pictures`.
    """
    return torch.stack([_load(picture, options) for picture in open_pictures(pictures)])


def load_mask(mask: Picture, pictures: Pictures, options: ImageOptions) -> torch.Tensor:
    """A mask for pictures, (1, 1, S, S) float32 in [0, 1]: white is 1.

    It has the size of the pictures and is cropped and resized as they are, or it has the model's size S.

    Raises:
        DataError: the file is missing or no picture.
        ConfigError: the mask has another size.
    """
    opened, *others = open_pictures(mask)
    if others:
        raise ConfigError(f"one mask serves all pictures, not {1 + len(others)}; give one picture")
    size = (options.image_size, options.image_size)
    for number, picture in enumerate(open_pictures(pictures)):
        if _size(opened) not in (_size(picture), size):
            which = "its picture" if number == 0 else f"picture {number}"
            raise ConfigError(
                "a mask of {} x {} pixels fits neither {} of {} x {} nor the model's {} x {}; draw it in one of "
                "these sizes".format(*_size(opened), which, *_size(picture), *size)
            )
    grey = dataclasses.replace(options, channels=1, background=(0, 0, 0))
    return _load(opened, grey)[None]


def _open(picture: Picture) -> Image.Image | torch.Tensor:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        values = torch.from_numpy(np.array(picture, order="C"))  # a copy: arrays of PIL images are read-only
        values = values[None] if values.ndim == 2 else values.movedim(-1, 0) if values.ndim == 3 else values
        layout = "(H, W), (H, W, C)"
    elif isinstance(picture, torch.Tensor):
        shape, values, layout = tuple(picture.shape), picture.detach(), "(C, H, W)"
    else:
        raise ConfigError(f"a {type(picture).__name__} is no picture; give a PIL image, a path, an array or a tensor")
    if values.ndim != 3 or values.shape[0] not in (1, 3) or not values.numel():
        raise ConfigError(
            f"a picture has shape {tuple(shape)}; give {layout} or a batch of these, with 1 or 3 channels"
        )
    if values.dtype == torch.uint8:
        return values.float() / 255
    if values.dtype == torch.bool:
        return values.float()
    if not values.is_floating_point():
        raise ConfigError(f"a picture of {values.dtype} has no known range; give uint8, or floats in [0, 1]")
    values = values.float()
    low, high = float(values.min()), float(values.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ConfigError(f"a picture has values from {low:g} to {high:g}; give floats in [0, 1], or uint8")
    return values


def _load(picture: Image.Image | torch.Tensor, options: ImageOptions) -> torch.Tensor:
    if isinstance(picture, torch.Tensor):
        if tuple(picture.shape) == options.shape:
            return picture.cpu()
        (picture,) = to_pil(picture[None])
    return load_image(picture, options).float() / 255


def _size(picture: Image.Image | torch.Tensor) -> tuple[int, int]:
    """Width and height in pixels, as people see the picture: upright."""
    if isinstance(picture, torch.Tensor):
        return picture.shape[2], picture.shape[1]
    width, height = picture.size
    with contextlib.suppress(Exception):  # broken EXIF data says nothing about orientation
        if picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            return height, width
    return width, height


def deciding_side(picture: Image.Image | torch.Tensor, options: ImageOptions) -> int:
    """The side in pixels that becomes the model's size: the shorter one, or the longer one of what is padded."""
    return min(_size(picture)) if options.fit == "crop" else max(_size(picture))
