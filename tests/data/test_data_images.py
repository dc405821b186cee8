"""Every mode, orientation and shape of picture becomes the right pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from spheregen.data import ImageOptions, decode_bytes, load_image, to_model_range
from spheregen.errors import ConfigError, DataError

BLUE = (0, 0, 255)


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """The picture after a round trip through a file format."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return decode_bytes(file.getvalue(), "test")


def pixel(image: Image.Image, **options: object) -> tuple[int, ...]:
    """The value of a picture of one colour."""
    values = load_image(image, ImageOptions(image_size=image.width, **options)).flatten(1)  # type: ignore[arg-type]
    assert (values == values[:, :1]).all()
    return tuple(values[:, 0].tolist())


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return stored(image) if transparency is None else stored(image, transparency=transparency)


def sixteen(value: int, mode: str = "I;16") -> Image.Image:
    return stored(Image.fromarray(np.full((4, 4), value, dtype=np.uint16)), "TIFF" if mode == "I;16B" else "PNG")


CASES = {
    "grey": (lambda: stored(Image.new("L", (4, 4), 77)), (77, 77, 77)),
    "rgb": (lambda: stored(Image.new("RGB", (4, 4), (1, 2, 3))), (1, 2, 3)),
    "one bit, white": (lambda: stored(Image.new("1", (4, 4), 1)), (255, 255, 255)),
    "one bit, black": (lambda: stored(Image.new("1", (4, 4), 0)), (0, 0, 0)),
    "grey, half transparent": (lambda: stored(Image.new("LA", (4, 4), (100, 128))), (50, 50, 177)),
    "grey, opaque": (lambda: stored(Image.new("LA", (4, 4), (100, 255))), (100, 100, 100)),
    "rgb, transparent": (lambda: stored(Image.new("RGBA", (4, 4), (9, 8, 7, 0))), BLUE),
    "rgb, opaque": (lambda: stored(Image.new("RGBA", (4, 4), (9, 8, 7, 255))), (9, 8, 7)),
    "rgb, half transparent": (lambda: stored(Image.new("RGBA", (4, 4), (200, 100, 0, 51))), (40, 20, 204)),
    "rgb, marked colour": (lambda: stored(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7)), BLUE),
    "rgb, other colour marked": (
        lambda: stored(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(1, 1, 1)),
        (9, 8, 7),
    ),
    "grey, marked": (lambda: stored(Image.new("L", (4, 4), 5), transparency=5), BLUE),
    "premultiplied grey": (lambda: Image.new("LA", (4, 4), (100, 0)).convert("La"), BLUE),
    "premultiplied rgb": (lambda: Image.new("RGBA", (4, 4), (9, 8, 7, 255)).convert("RGBa"), (9, 8, 7)),
    "palette": (lambda: palette(None), (200, 100, 50)),
    "palette, entry transparent": (lambda: palette(1), BLUE),
    "palette, other transparent": (lambda: palette(0), (200, 100, 50)),
    "palette, alpha table": (lambda: palette(bytes([255, 51])), (40, 20, 214)),
    "cmyk tiff": (lambda: stored(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "cmyk jpeg": (lambda: stored(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "JPEG"), (0, 0, 0)),
    "ycbcr": (lambda: Image.new("RGB", (4, 4), (255, 255, 255)).convert("YCbCr"), (255, 255, 255)),
    "hsv": (lambda: Image.new("HSV", (4, 4), (0, 255, 255)), (255, 0, 0)),
    "16 bit, highest": (lambda: sixteen(65535), (255, 255, 255)),
    "16 bit, middle": (lambda: sixteen(257 * 100), (100, 100, 100)),
    "16 bit, rounded": (lambda: sixteen(257 * 100 + 129), (101, 101, 101)),
    "16 bit, low": (lambda: sixteen(300), (1, 1, 1)),  # 300 is not clipped to 255
    "16 bit, tiff": (lambda: sixteen(257 * 7, "I;16B"), (7, 7, 7)),
    "16 bit, big endian": (lambda: decode_bytes(b"P5 1 1 65535\n\x64\x64", "pgm"), (100, 100, 100)),
    "16 bit, marked": (
        lambda: stored(Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)), transparency=3000),
        BLUE,
    ),
    "32 bit": (lambda: Image.fromarray(np.full((4, 4), 257 * 9, dtype=np.int32)), (9, 9, 9)),
    "float": (lambda: stored(Image.fromarray(np.full((4, 4), 0.2, dtype=np.float32)), "TIFF"), (51, 51, 51)),
    "float, to 255": (lambda: Image.fromarray(np.full((4, 4), 33.0, dtype=np.float32)), (33, 33, 33)),
}


@pytest.mark.parametrize("case", CASES)
def test_modes(case: str) -> None:
    make, expected = CASES[case]
    red, green, blue = pixel(make(), background=BLUE)
    assert (red, green, blue) == expected
    luma = round(0.299 * red + 0.587 * green + 0.114 * blue)
    assert abs(pixel(make(), channels=1, background=BLUE)[0] - luma) <= 1


@pytest.mark.parametrize(
    "values",
    [np.int32([[-1, 5]]), np.int32([[0, 70000]]), *(np.float32([[0.5, v]]) for v in (np.nan, np.inf, -1, 300))],
)
def test_values_without_known_scale_are_refused(values: npt.NDArray[Any]) -> None:
    with pytest.raises(DataError, match="32-bit" if values.dtype == np.int32 else "float"):
        load_image(Image.fromarray(values), ImageOptions(image_size=1))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for kind in ("GIF", "PNG", "TIFF"):
        assert pixel(stored(frames[0], kind, save_all=True, append_images=frames[1:])) == (255, 0, 0)


def test_what_pillow_cannot_convert_is_a_data_error() -> None:
    image = Image.new("L", (2, 2))
    image.info["transparency"] = b"nonsense"
    with pytest.raises(DataError, match="mode L cannot be converted"):
        load_image(image, ImageOptions(image_size=2))


ORIENTED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    values = (np.arange(64).reshape(8, 8) * 4).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = stored(Image.fromarray(values), kind, exif=exif)
    result = load_image(image, ImageOptions(image_size=8, channels=1))[0].numpy().astype(int)
    assert abs(result - ORIENTED[orientation](values)).max() <= (12 if kind == "JPEG" else 0)


def test_a_picture_of_the_right_size_is_untouched() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    for resize in ("adm", "bicubic", "nearest", "published"):
        for fit in ("crop", "pad"):
            options = ImageOptions(image_size=7, resize=resize, fit=fit)  # type: ignore[arg-type]
            assert np.array_equal(load_image(Image.fromarray(values), options).permute(1, 2, 0).numpy(), values)


@pytest.mark.parametrize("size", [(100, 61), (31, 64), (257, 128), (17, 200), (20, 20), (9, 10)])
def test_adm_crop_follows_its_definition(size: tuple[int, int]) -> None:
    """Box-halve while the shorter side is at least twice the target, bicubic, centre crop: written out once more."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = image
    while min(*expected.size) >= 2 * 16:
        expected = expected.resize((expected.size[0] // 2, expected.size[1] // 2), Image.Resampling.BOX)
    scale = 16 / min(*expected.size)
    target = (round(expected.size[0] * scale), round(expected.size[1] * scale))
    array = np.array(expected.resize(target, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - 16) // 2, (array.shape[1] - 16) // 2
    result = load_image(image, ImageOptions(image_size=16)).permute(1, 2, 0).numpy()
    assert np.array_equal(result, array[top : top + 16, left : left + 16])


def test_published_resize_is_nearest_up_to_64_and_bicubic_above() -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (150, 190), dtype=np.uint8))
    for size, same in ((32, "nearest"), (64, "nearest"), (65, "bicubic"), (128, "bicubic")):
        results = {
            name: load_image(image, ImageOptions(image_size=size, resize=name))  # type: ignore[arg-type]
            for name in ("published", "nearest", "bicubic")
        }
        assert torch.equal(results["published"], results[same])
        assert not torch.equal(results["nearest"], results["bicubic"])


@pytest.mark.parametrize("resize", ["adm", "bicubic", "nearest", "published"])
def test_pad_keeps_everything_and_fills_with_the_background(resize: str) -> None:
    options = ImageOptions(image_size=8, fit="pad", background=(1, 2, 3), resize=resize)  # type: ignore[arg-type]
    wide = load_image(Image.new("RGB", (32, 16), (200, 0, 0)), options)
    assert (wide[:, 2:6] == torch.tensor([200, 0, 0]).view(3, 1, 1)).all()
    assert (wide[:, :2] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
    assert (wide[:, 6:] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()
    tall = load_image(Image.new("RGB", (16, 32), (200, 0, 0)), options)
    assert torch.equal(tall, wide.transpose(1, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (700, 2)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_extreme_shapes(size: tuple[int, int], fit: str) -> None:
    image = Image.new("RGB", size, (5, 6, 7))
    result = load_image(image, ImageOptions(image_size=16, fit=fit))  # type: ignore[arg-type]
    assert result.shape == (3, 16, 16)
    assert result[:, 7, 7].tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    "bad",
    [{"image_size": 0}, {"channels": 4}, {"fit": "stretch"}, {"resize": "lanczos"}, {"background": (0, 0, 256)}],
)
def test_impossible_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ImageOptions(**{"image_size": 8} | bad)  # type: ignore[arg-type]


def encoded(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def test_truncated_files_and_what_is_no_picture_are_named() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        data = encoded(kind)
        with pytest.raises(DataError, match=r"here\.x: .*skip it with data.on_error=skip") as caught:
            decode_bytes(data[: len(data) // 2], "here.x")
        assert "\n" not in str(caught.value)
    for data, words in ((b"", "empty"), (b"just some words", "not an image"), (b"\xff\xd8\xff", "")):
        with pytest.raises(DataError, match=f"here: .*{words}"):
            decode_bytes(data, "here")


@pytest.mark.parametrize("limit", [40 * 64, 20 * 64])  # Pillow warns above its limit and refuses twice of it
def test_decompression_bombs_are_errors(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="safety limit"):
        decode_bytes(encoded(), "bomb")


def test_model_range() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    result = to_model_range(values)
    assert result.dtype == torch.float32
    assert (result[0], result[255]) == (-1.0, 1.0)
    assert torch.equal(((result + 1) * 127.5).round().to(torch.uint8), values)
