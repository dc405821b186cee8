"""Pictures out: tensors to PIL, sheets of many pictures, PNG files that say where they come from."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from spheregen.data.images import read_image
from spheregen.errors import ConfigError
from spheregen.files import atomic_path

Rounding = Literal["round", "floor"]


def to_uint8(images: torch.Tensor, *, rounding: Rounding = "round") -> torch.Tensor:
    """Float pictures in [0, 1] -> uint8 0..255, any shape; values outside are clamped, NaN becomes 0.

    "round" is round(255 * x), which inverts x = value / 255 and has no bias; "floor" is floor(255 * x), the published
    code's rule, half a level darker on average: use it only to compare with numbers made that way.
    """
    scaled = torch.nan_to_num(images.detach().to(torch.float32)).clamp(0.0, 1.0) * 255.0
    return (scaled.floor() if rounding == "floor" else scaled.round()).to(torch.uint8)


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """(N, C, H, W), uint8 or float in [0, 1], C = 1 or 3 -> N pictures of mode L or RGB."""
    return [Image.fromarray(pixels) for pixels in _pixels(images)]


def image_grid(
    images: torch.Tensor,
    *,
    columns: int | None = None,
    scale: int = 1,
    pad: int = 2,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """One sheet of N pictures, row by row.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1], C = 1 (sheet of mode L) or 3 (RGB).
        columns: pictures in a row; by default the sheet is about square.
        scale: each pixel becomes scale x scale pixels.
        pad: pixels of background around each picture, shared between neighbours.

    Returns:
        A picture of columns * (W * scale + pad) + pad by rows * (H * scale + pad) + pad pixels.
    """
    pixels = _pixels(images)
    count, height, width = pixels.shape[:3]
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if count < 1 or columns < 1 or scale < 1 or pad < 0:
        raise ConfigError(
            f"a grid of {count} images with columns {columns}, scale {scale} and pad {pad} is impossible; "
            "pad is 0 or more, the others 1 or more"
        )
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    sheet = Image.new("RGB", (columns * (width + pad) + pad, rows * (height + pad) + pad), background)
    if pixels.ndim == 3:
        sheet = sheet.convert("L")
    for place, picture in enumerate(pixels):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(picture), (pad + column * (width + pad), pad + row * (height + pad)))
    return sheet


def encode_png(image: Image.Image, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file with `metadata` as text chunks (tEXt; iTXt where Latin-1 does not suffice).

    Raises:
        ConfigError: a key is no PNG keyword (1 to 79 Latin-1 characters).
    """
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=_png_text(metadata))
    return file.getvalue()


def save_png(
    image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write what `encode_png` makes to a file, atomically.

    `durable=False` leaves the flush to the system: for thousands of pictures that can be made again.

    Raises:
        ConfigError: a key is no PNG keyword (1 to 79 Latin-1 characters).
        SphereGenError: the file cannot be written; nothing is left behind.
    """
    text = _png_text(metadata)
    with atomic_path(path, durable=durable) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def read_metadata(path: Path) -> dict[str, str]:
    """The text that `save_png` put into a PNG file.

    Raises:
        DataError: the file is missing or no image.
    """
    image = read_image(path)
    return (
        {str(key): str(value) for key, value in image.text.items()}
        if isinstance(image, PngImagePlugin.PngImageFile)
        else {}
    )


def _png_text(metadata: Mapping[str, str] | None) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        try:
            size = len(key.encode("latin-1", "strict"))
        except UnicodeEncodeError:
            size = 0
        if not 0 < size < 80 or "\0" in key:
            raise ConfigError(f"{key!r} cannot name PNG metadata; use 1 to 79 Latin-1 characters")
        text.add_text(key, value.encode("utf-8", "replace").decode())  # names of files may be no text
    return text


def _pixels(images: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(N, C, H, W) -> uint8 (N, H, W, 3), or (N, H, W) if C = 1."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"images have the shape {tuple(images.shape)}; give (N, C, H, W) with C = 1 or 3")
    values = (images.detach() if images.dtype == torch.uint8 else to_uint8(images)).cpu()
    result: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = values.permute(0, 2, 3, 1).contiguous().numpy()
    return result[..., 0] if result.shape[-1] == 1 else result
