"""Images in the bodies of requests and answers: read within limits, written in the format that was asked for."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from spheregen.data import ImageOptions, encode_png
from spheregen.data.images import load_image
from spheregen.errors import DataError
from spheregen.pipeline import PipelineOutput

Format = Literal["png", "webp", "jpeg", "npy"]
MEDIA: dict[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "npy": "application/x-npy",
}
"""The media type of each format."""
READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that requests may hold: those of pages and phones, whose decoders are in wide use."""
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)
_NUMBERS = ("f2", "f4", "f8")  # of latents


def from_base64(text: str, name: str, most_bytes: int) -> bytes:
    """Return the bytes of base64 text, or of a data URL.

    Raises:
        DataError: it is none, or holds more than `most_bytes`. Names `name`.
    """
    prefix = _DATA_URL.match(text[:100])
    start = prefix.end() if prefix else 0
    if (len(text) - start) * 3 // 4 > most_bytes:
        raise DataError(f"{name}: a file of more than {most_bytes} bytes; send a smaller one")
    try:
        return base64.b64decode(text[start:] if start else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{name}: no base64 text of a file, and neither paths nor addresses are read; send the file itself"
        ) from error


def read_image(data: bytes, name: str, most_pixels: int) -> Image.Image:
    """Decode an image file; of an animation the first frame.

    Raises:
        DataError: it is no image of a format in `READ`, is broken, or has more than `most_pixels`, which is looked at
            before anything is unpacked. Names `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=READ)
            if image.width * image.height > most_pixels:
                size = f"{image.width} x {image.height}"
                raise DataError(f"{name}: an image of {size} pixels, and {most_pixels} are the most; scale it down")
            image.load()
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: no image of a kind that is read; send {', '.join(READ)}") from error
    except Exception as error:  # broken files make decoders raise nearly anything
        cause = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(f"{name}: a broken image ({cause}); save it again") from error
    return image


def as_model_takes_it(image: Image.Image, options: ImageOptions) -> Tensor:
    """Return an image as the model takes it, (C, S, S) float32 in [0, 1]; what a pipeline makes of it is the same."""
    return load_image(image, options).float() / 255


def read_latents(data: bytes, name: str, shape: tuple[int, ...], most: int) -> Tensor:
    """Read points (B, N, d) of an npy file.

    Raises:
        DataError: it is none, of another shape, of more than `most` points, or holds no finite numbers. Names `name`.
    """
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        found, fortran, dtype = header(file, max_header_size=1000)
        if dtype.str[1:] not in _NUMBERS or fortran or found[1:] != shape or not 1 <= found[0] <= most:
            wanted = ", ".join(map(str, shape))
            raise DataError(f"{name}: an array {found} of {dtype}; send (B, {wanted}) of float32, B at most {most}")
        count = int(np.prod(found))
        points = np.frombuffer(data, dtype, count, offset=file.tell()).reshape(found).astype(np.float32)
    except DataError:
        raise
    except Exception as error:  # a header of somebody else's making
        raise DataError(f"{name}: no npy file; send what numpy.save writes") from error
    if not np.isfinite(points).all():
        raise DataError(f"{name}: numbers that are not finite; send points of the sphere")
    return torch.from_numpy(points)


def write_npy(array: Tensor) -> bytes:
    """Return the npy file of a tensor."""
    file = io.BytesIO()
    np.save(file, array.numpy(), allow_pickle=False)
    return file.getvalue()


def write_image(image: Image.Image, form: Format, quality: int, metadata: dict[str, str] | None = None) -> bytes:
    """Return the file of an image; a PNG holds the metadata."""
    if form == "png":
        return encode_png(image, metadata)
    file = io.BytesIO()
    image.save(file, format=form.upper(), quality=quality)
    return file.getvalue()


def write_each(output: PipelineOutput, form: Format, quality: int) -> list[bytes]:
    """Return a file for each image of an output; the npy file of one is (C, S, S) float32 in [0, 1]."""
    if form == "npy":
        return [write_npy(each) for each in output.tensor]
    return [write_image(image, form, quality, output.metadata(number)) for number, image in enumerate(output.images)]


def write_all(output: PipelineOutput, form: Format, quality: int) -> bytes:
    """Return all images of an output as one file: the image, or a sheet of several; as npy (B, C, S, S)."""
    if form == "npy":
        return write_npy(output.tensor)
    if len(output) == 1:
        return write_each(output, form, quality)[0]
    return write_image(output.grid(), form, quality, output.metadata(0))


def to_base64(data: bytes) -> str:
    """Return a file as base64 text."""
    return base64.b64encode(data).decode("ascii")
