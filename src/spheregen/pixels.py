"""One image: any mode, orientation and shape -> a uint8 array (C, S, S), without torch.

ICC profiles and gamma tags are not applied: samples are taken as sRGB, as every published data set of this field does.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from spheregen.errors import ConfigError, DataError, check_choices

Fit = Literal["crop", "pad"]
Resize = Literal["adm", "bicubic", "nearest", "published"]
Pixels = npt.NDArray[np.uint8]

_UNSAFE = frozenset({"EPS", "PDF", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"})  # they run code, or hold no pixels
_PNG, _TEXT_CHUNKS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_LONGEST_STRIP = 16  # aspect ratio beyond which the ends are cut before, not after, enlarging


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The way in which images are brought to one size and one number of channels."""

    image_size: int  # S in pixels, >= 1; images become S x S
    channels: int = 3  # 3 = RGB, 1 = grey (ITU-R 601 luma)
    fit: Fit = "crop"  # "crop": the centre square; "pad": the whole image with background around it
    background: tuple[int, int, int] = (255, 255, 255)  # RGB, behind transparent pixels and around padded images
    resize: Resize = "adm"  # adm: halve by box filter, then bicubic; published: nearest up to 64 px, else bicubic

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}; give a number of pixels from 1 up")
        if self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels}; choose 1 (grey) or 3 (RGB)")
        check_choices(self)
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ConfigError(f"background is {self.background}; give red, green and blue from 0 to 255")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def bytes_per_image(self) -> int:
        return self.channels * self.image_size**2


@cache
def image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read: those of Pillow and of plugins for HEIC and JPEG XL, where
    they are installed, without what can run code or holds no pixels."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    Image.init()
    return tuple(name for name in Image.ID if name not in _UNSAFE)


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files that are read, in small letters."""
    known = {*image_formats(), "MPO"}  # which is read as JPEG
    return tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in known))


def load_array(image: Image.Image, options: ImageOptions) -> Pixels:
    """Bring a PIL image of any mode and shape to uint8 (C, S, S), 0..255, which may be a read-only, transposed view.

    EXIF orientation is applied, transparency is laid on `options.background`, 16-bit values are divided by 257, of an
    animation the current frame is taken. An image that already is S x S is not resampled.

    Raises:
        DataError: the mode cannot be converted, or the values of a 32-bit image have no known scale. The message does
            not know the file's name.
    """
    image = to_mode(image, options)
    size = options.image_size
    if image.size != (size, size):
        image = _crop(image, options) if options.fit == "crop" else _pad(image, options)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def to_mode(image: Image.Image, options: ImageOptions) -> Image.Image:
    """Return an image upright and as "RGB" or "L" of 8 bits, as large as it is. Raises what `load_array` raises."""
    try:
        return _to_channels(_upright(image), options)
    except (ValueError, TypeError, OSError) as error:  # a mode, palette or transparency that Pillow cannot convert
        raise DataError(f"an image of mode {image.mode} cannot be converted ({error}); save it as RGB") from error


def read_image(path: str | Path) -> Image.Image:
    """Read and decode an image file completely; a DataError names the path if that fails."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    return decode_bytes(data, str(path))


def decode_bytes(data: bytes, where: str | Callable[[], str]) -> Image.Image:
    """Decode an encoded image completely; of an animation or a multi-page file the first frame.

    `where` names it in errors; a function is called only if there is one.

    Raises:
        DataError: `data` is empty, truncated, no image, or larger than Pillow's safety limit. Names `where`.
    """
    if not data:
        raise _bad(where, "the image is empty (0 bytes); remove it")
    try:
        # Pillow warns about oddities that do not matter here; a decompression bomb does, so that one is an error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=image_formats())
            image.load()
            if "exif" in image.info:
                image.getexif()  # parsed once, here, where a warning about broken EXIF data stays quiet
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"the image is larger than Pillow's safety limit of {Image.MAX_IMAGE_PIXELS} pixels"
        raise _bad(where, f"{limit}; scale it down") from error
    except UnidentifiedImageError as error:
        raise _bad(where, "not an image that Pillow can read; remove it") from error
    except Exception as error:  # broken files make decoders raise nearly anything: SyntaxError, struct.error ...
        if data.startswith(_PNG) and len(plain := _without_text(data)) < len(data):
            return decode_bytes(plain, where)  # Pillow limits how much text a file may unpack; nobody needs it here
        cause = " ".join(str(error).split()) or type(error).__name__
        raise _bad(where, f"corrupt or truncated image ({cause}); remove it") from error
    return image


def check_convertible(image: Image.Image) -> None:
    """Raise the DataError that `load_array` raises for this image, if it does."""
    to_mode(image, ImageOptions(image_size=1))


def _without_text(png: bytes) -> bytes:
    """Return a PNG file without its texts and colour profile, which are not unpacked for it."""
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] not in _TEXT_CHUNKS:
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def _bad(where: str | Callable[[], str], problem: str) -> DataError:
    named = where if isinstance(where, str) else where()
    return DataError(f"{named}: {problem}, or in training skip it with data.on_error=skip")


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    info = image.info
    if image.format == "JPEG" and "exif" not in info and "xmp" not in info:
        return image  # by far the most common case, and looking closer costs as much as decoding a small image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data says nothing about orientation; the pixels are fine
        return image


def _to_channels(image: Image.Image, options: ImageOptions) -> Image.Image:
    """Convert any mode to "RGB" or "L"."""
    target = "RGB" if options.channels == 3 else "L"
    if image.mode == target and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        # an alpha channel, palette entry or marked colour; premultiplied grey has no direct way
        drawn = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*options.background, 255)), drawn).convert("RGB")
    if image.mode == target:
        return image
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # not every mode has a direct way to grey
    return image.convert(target)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit (modes I;16*, I) and float (F) grey to "L", or "LA" where one value is marked as transparent.

    Mode I is what Pillow makes of 16-bit files in some formats. Float images are in [0, 1] (the convention of
    scientific files) or, if a value exceeds 1, in [0, 255] (Pillow's).
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    kind, unit, known = "32-bit", 65535.0, "[0, 65535]"
    if image.mode == "F":
        kind, unit, known = "float", 1.0 if high <= 1.0 else 255.0, "[0, 1] or [0, 255]"
    if not (low >= 0.0 and high <= unit):  # also true for NaN
        raise DataError(f"a {kind} image has values from {low:g} to {high:g}, not in {known}; save it with 8 bits")
    grey = Image.fromarray(np.rint(values.astype(np.float64) * (255.0 / unit)).astype(np.uint8))
    transparent: Any = image.info.get("transparency")
    if isinstance(transparent, int):
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
    return grey


def _crop(image: Image.Image, options: ImageOptions) -> Image.Image:
    """Scale the shorter side to S, then cut the centre square; with "adm" as ADM (guided diffusion) does."""
    size = options.image_size
    width, height = image.size
    shorter = min(width, height)
    if max(width, height) > _LONGEST_STRIP * shorter:  # a 1 x 50000 strip must not become 256 x 12.8 million
        keep = _LONGEST_STRIP * shorter
        left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
        image = image.crop((left, top, left + min(width, keep), top + min(height, keep)))
    image = _resize(image, min(image.size), options)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _pad(image: Image.Image, options: ImageOptions) -> Image.Image:
    """Scale the longer side to S, with background around."""
    size = options.image_size
    image = _resize(image, max(image.size), options)
    canvas = Image.new("RGB", (size, size), options.background).convert(image.mode)
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas


def _resize(image: Image.Image, side: int, options: ImageOptions) -> Image.Image:
    """Scale so that the side which measures `side` pixels measures S; aspect is kept."""
    size = options.image_size
    method = options.resize
    if method == "published":
        method = "nearest" if size <= 64 else "bicubic"
    if method == "adm":
        while side >= 2 * size:
            image = image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)
            side //= 2
    if side == size:
        return image
    scale = size / side
    target = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(target, Image.Resampling.NEAREST if method == "nearest" else Image.Resampling.BICUBIC)
