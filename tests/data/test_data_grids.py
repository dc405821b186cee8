"""Sheets, PNG files and their metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spheregen.data import image_grid, read_metadata, save_png, to_pil, to_uint8
from spheregen.errors import ConfigError, DataError, SphereGenError


def test_to_uint8_inverts_division_by_255() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values / 255), values)
    x = torch.tensor([-1.0, 0.0, 0.5, 0.999, 1.0, 7.0, torch.nan, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 255, 0, 255]
    assert to_uint8(x, rounding="floor").tolist() == [0, 0, 127, 254, 255, 255, 0, 255]
    assert to_uint8(torch.rand(2, 3, requires_grad=True).to(torch.bfloat16)).dtype == torch.uint8


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(
    ("count", "columns", "rows", "used"), [(5, None, 2, 3), (6, 2, 3, 2), (3, 8, 1, 3), (1, None, 1, 1)]
)
def test_grid_geometry(channels: int, mode: str, count: int, columns: int | None, rows: int, used: int) -> None:
    images = torch.stack([torch.full((channels, 4, 6), 10 * i + 5, dtype=torch.uint8) for i in range(count)])
    sheet = image_grid(images, columns=columns, scale=3, pad=2)
    assert sheet.mode == mode
    assert sheet.size == (used * (18 + 2) + 2, rows * (12 + 2) + 2)
    pixels = np.array(sheet.convert("L")).astype(int)
    covered = np.zeros_like(pixels, dtype=bool)
    for i in range(count):
        top, left = 2 + (i // used) * 14, 2 + (i % used) * 20
        assert (pixels[top : top + 12, left : left + 18] == 10 * i + 5).all()
        covered[top : top + 12, left : left + 18] = True
    assert (pixels[~covered] == 255).all()


def test_grid_scales_by_whole_pixels_and_takes_floats() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    assert np.array(image_grid(image, scale=2, pad=0)).tolist() == [
        [0, 0, 255, 255], [0, 0, 255, 255], [128, 128, 64, 64], [128, 128, 64, 64],
    ]  # fmt: skip
    assert image_grid(image.expand(1, 3, 2, 2), pad=1, background=(9, 8, 7)).getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize("bad", [{"columns": 0}, {"scale": 0}, {"pad": -1}])
def test_impossible_grids(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        image_grid(torch.zeros(2, 1, 2, 2), **bad)  # type: ignore[arg-type]
    for shape in ((2, 2, 2, 2), (1, 2, 2), (0, 3, 2, 2)):
        with pytest.raises(ConfigError):
            image_grid(torch.zeros(shape))


def test_to_pil_has_no_hidden_axes() -> None:
    values = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    for image, expected in zip(to_pil(values), values, strict=True):
        assert image.size == (5, 4)
        assert np.array_equal(np.array(image), expected.permute(1, 2, 0).numpy())
    assert [image.mode for image in to_pil(values[:, :1])] == ["L", "L"]


def test_metadata_round_trip(tmp_path: Path) -> None:
    metadata = {"seed": "7", "prompt": "a röd κύκλος 球\nand a second line", "empty": "", "long": "x" * 5000}
    for mode in ("L", "RGB"):
        save_png(Image.new(mode, (3, 2), 9), tmp_path / "sub" / "a.png", metadata)
        assert read_metadata(tmp_path / "sub" / "a.png") == metadata
        with Image.open(tmp_path / "sub" / "a.png") as image:
            assert (image.mode, image.size) == (mode, (3, 2))
    save_png(Image.new("L", (1, 1)), tmp_path / "plain.png")
    assert read_metadata(tmp_path / "plain.png") == {}
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata(tmp_path / "none.png")


@pytest.mark.parametrize("key", ["", "x" * 80, "球", "a\0b"])
def test_keys_that_png_forbids(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError):
        save_png(Image.new("L", (1, 1)), tmp_path / "a.png", {key: "v"})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("L", (2, 2), 1), path, {"seed": "1"})

    def full(self: Image.Image, fp: Path, **_: object) -> None:
        Path(fp).write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SphereGenError, match="No space left"):
        save_png(Image.new("L", (2, 2), 2), path, {"seed": "2"})
    with pytest.raises(SphereGenError, match="No space left"):
        save_png(Image.new("L", (2, 2), 2), tmp_path / "b.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert read_metadata(path) == {"seed": "1"}
