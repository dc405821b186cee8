"""Images as people hand them over, and masks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from spheregen.data import ImageOptions
from spheregen.data.inputs import ImageInputs, load_images, load_mask, open_images
from spheregen.errors import ConfigError, SphereGenError

RGB, GREY = ImageOptions(image_size=8), ImageOptions(image_size=8, channels=1)
ORIENTATION = 0x0112
BYTES = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
PICTURE = torch.from_numpy(BYTES).permute(2, 0, 1).float() / 255


def noise(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def refuses(kind: type[SphereGenError], call: Callable[[], Any], *reasons: str) -> None:
    """The call fails with one line that holds all reasons."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    for reason in reasons:
        assert reason in str(caught.value)


# every form -----------------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Path], ImageInputs]] = {
    "pil": lambda folder: Image.fromarray(BYTES),
    "path": lambda folder: folder / "a.png",
    "text": lambda folder: str(folder / "a.png"),
    "bytes (H, W, C)": lambda folder: BYTES,
    "floats (H, W, C)": lambda folder: BYTES.astype(np.float32) / 255,
    "halves (C, H, W)": lambda folder: (PICTURE * 255).half() / 255,
    "batch (B, H, W, C)": lambda folder: BYTES[None],
    "bytes (C, H, W)": lambda folder: torch.from_numpy(BYTES).permute(2, 0, 1),
    "floats (C, H, W)": lambda folder: PICTURE,
    "batch (B, C, H, W)": lambda folder: PICTURE[None],
    "gradient": lambda folder: PICTURE.clone().requires_grad_(),
    "read-only": lambda folder: np.asarray(Image.fromarray(BYTES)),
    "mirrored twice": lambda folder: BYTES[::-1].copy()[::-1],  # negative strides
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(BYTES).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(form: str, folder: Path) -> None:
    given = FORMS[form](folder)
    loaded = load_images(given, RGB)
    assert loaded.shape == (1, 3, 8, 8) and loaded.dtype == torch.float32
    assert not loaded.requires_grad
    torch.testing.assert_close(loaded[0], PICTURE, atol=5e-4 if "halves" in form else 1e-6, rtol=0)
    grey = load_images(given, GREY)  # rounded to 8 bits on the way
    assert grey.shape == (1, 1, 8, 8)
    luma = PICTURE[0] * 0.299 + PICTURE[1] * 0.587 + PICTURE[2] * 0.114
    torch.testing.assert_close(grey[0, 0], luma, atol=1.5 / 255, rtol=0)


def test_many_pictures_keep_their_order() -> None:
    pictures = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 51, 204)])
    for given in (pictures, torch.from_numpy(pictures).movedim(-1, 1), [Image.fromarray(p) for p in pictures]):
        assert load_images(given, RGB).mean((1, 2, 3)).tolist() == pytest.approx([0, 0.2, 0.8])
    assert len(open_images(pictures)) == 3
    # what has the right size already is taken as it is
    fine = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))  # finer than 8 bits
    assert torch.equal(load_images(fine, RGB), fine)
    torch.testing.assert_close(load_images(fine.movedim(1, -1).numpy(), RGB), fine, atol=0, rtol=0)


# every size -----------------------------------------------------------------------------------------------------------


# refused --------------------------------------------------------------------------------------------------------------


def test_what_is_no_picture_is_refused() -> None:
    given: Any
    for given, reason in (
        ([], "no images were given"), (torch.zeros(0, 3, 8, 8), "no images were given"),
        (torch.zeros(8, 8), "shape (8, 8)"), (np.zeros((3, 8, 8)), "shape (3, 8, 8)"), ([None], "NoneType"),
        (np.zeros((2, 3, 8, 8)), "a batch of these"), (np.zeros((8, 0, 3)), "shape (8, 0, 3)"), ([[BYTES]], "list"),
        (np.zeros((8, 8, 3), np.int64), "int64"), (np.full((8, 8, 3), 255.0), "from 255 to 255"),
        (np.full((8, 8, 3), np.nan), "nan"),
    ):  # fmt: skip
        refuses(ConfigError, partial(load_images, given, RGB), reason)


# masks ----------------------------------------------------------------------------------------------------------------

HALF = np.zeros((8, 8), np.uint8)
HALF[:, :4] = 255


def test_masks_that_do_not_fit_are_refused() -> None:
    mask: Any
    pictures: Any
    for mask, pictures, *reasons in (
        (noise(4, 4, 1), BYTES, "4 x 4 pixels", "picture 0 of 8 x 8", "the model's 8 x 8"),
        (noise(16, 32, 1), noise(32, 16), "32 x 16 pixels", "picture 0 of 16 x 32"),
        (noise(16, 16, 1), [noise(16, 16), noise(16, 20)], "16 x 16 pixels", "picture 1 of 20 x 16"),
        (torch.zeros(8, 8), BYTES, "shape (8, 8)"), (torch.full((1, 8, 8), 2.0), BYTES, "from 2 to 2"),
        ([HALF, HALF], BYTES, "one mask", "not 2"), ([], BYTES, "no images were given"),
    ):  # fmt: skip
        refuses(ConfigError, partial(load_mask, mask, pictures, RGB), *reasons)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_mask_is_drawn_on_the_upright_picture(orientation: int, tmp_path: Path) -> None:
    """Cameras store a turned picture and say so; people draw on what they see."""
    photo = Image.fromarray(noise(12, 20))
    photo.getexif()[ORIENTATION] = orientation
    photo.save(tmp_path / "photo.png", exif=photo.getexif())
    seen = (12, 20) if orientation in (1, 3) else (20, 12)  # height and width
    path = tmp_path / "photo.png"
    assert load_mask(noise(*seen, 1), path, RGB).shape == (1, 1, 8, 8)
    refuses(ConfigError, lambda: load_mask(noise(*seen[::-1], 1), path, RGB), f"of {seen[1]} x {seen[0]} nor")
