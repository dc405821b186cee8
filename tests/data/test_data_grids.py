"""Grids, labelled sheets, PNG files and their metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from spheregen.data import encode_png, image_grid, labelled_sheet, read_metadata, save_png, to_uint8
from spheregen.errors import ConfigError, DataError


def test_to_uint8_inverts_division_by_255() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values / 255), values)
    x = torch.tensor([-1.0, 0.0, 0.5, 0.999, 1.0, 7.0, torch.nan, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 255, 0, 255]
    assert to_uint8(x, rounding="floor").tolist() == [0, 0, 127, 254, 255, 255, 0, 255]
    assert to_uint8(torch.rand(2, 3, requires_grad=True).to(torch.bfloat16)).dtype == torch.uint8


@pytest.mark.parametrize(
    ("channels", "mode", "count", "columns", "rows", "used"),
    [(1, "L", 5, None, 2, 3), (3, "RGB", 6, 2, 3, 2), (3, "RGB", 3, 8, 1, 3)],
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


# labelled sheets ------------------------------------------------------------------------------------------------------

Box = tuple[int, int, int, int]  # left, top, right, bottom
Drawn = list[tuple[Any, Box]]  # texts and images, and where


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    result: Drawn = []
    draw_text, paste = ImageDraw.ImageDraw.multiline_text, Image.Image.paste

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, **options: Any) -> None:
        if text:
            chosen = {name: options[name] for name in ("font", "anchor", "align")}
            result.append((text, tuple(map(int, self.multiline_textbbox(xy, text, **chosen)))))
        draw_text(self, xy, text, **options)

    def record(self: Image.Image, im: Image.Image, box: tuple[int, int]) -> None:
        if self.mode == "RGB" and im.width > 14 and im.getpixel((0, 0)) in (255, (255, 255, 255)):  # a grid
            result.append((im, (*box, box[0] + im.width, box[1] + im.height)))
        paste(self, im, box)

    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", text)
    monkeypatch.setattr(Image.Image, "paste", record)
    return result


def cell(count: int, side: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * side)
    return torch.rand(count, channels, side, side, generator=generator)


def test_labels_are_where_they_belong(drawn: Drawn) -> None:
    rows = [[cell(4, 16) for _ in range(3)] for _ in range(2)]
    notes = [[f"n{r}{k}" for k in range(3)] for r in range(2)]
    sheet = labelled_sheet(rows, ["r0", "r1"], ["c0", "c1", "é"], title="t", notes=notes)
    texts = {text: box for text, box in drawn if isinstance(text, str)}
    grids = [(image, box) for image, box in drawn if not isinstance(image, str)]
    for place, (grid, (left, top, right, bottom)) in enumerate(grids):
        assert grid.tobytes() == image_grid(cell(4, 16)).tobytes()
        r, k = divmod(place, 3)
        assert texts[f"r{r}"][2] < left and top < texts[f"r{r}"][1] < texts[f"r{r}"][3] < bottom
        for text, above in (("e" if k == 2 else f"c{k}", True), (f"n{r}{k}", False)):
            box = texts[text]
            assert abs((box[0] + box[2]) - (left + right)) <= 4  # centred
            assert box[3] <= top if above else bottom <= box[1]
            assert texts["t"][3] < box[1]
    again = labelled_sheet(rows, ["r0", "r1"], ["c0", "c1", "é"], title="t", notes=notes)
    assert sheet.tobytes() == again.tobytes()


# PNG ------------------------------------------------------------------------------------------------------------------


def test_metadata_round_trip(tmp_path: Path) -> None:
    metadata = {"seed": "7", "prompt": "a röd κύκλος 球\nand a second line", "empty": "", "long": "x" * 5000}
    for mode in ("L", "RGB"):
        save_png(Image.new(mode, (3, 2), 9), tmp_path / "sub" / "a.png", metadata)
        found = read_metadata(tmp_path / "sub" / "a.png")
        assert found.pop("Software").startswith("spheregen") and found == metadata
        with Image.open(tmp_path / "sub" / "a.png") as image:
            assert (image.mode, image.size) == (mode, (3, 2))
        assert (tmp_path / "sub" / "a.png").read_bytes() == encode_png(Image.new(mode, (3, 2), 9), metadata)
    save_png(Image.new("L", (1, 1)), tmp_path / "plain.png")
    assert read_metadata(tmp_path / "plain.png").keys() <= {"Software"}
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata(tmp_path / "none.png")


def test_keys_that_png_forbids(tmp_path: Path) -> None:
    for key in ("", "x" * 80, "球", "a\0b"):
        with pytest.raises(ConfigError):
            save_png(Image.new("L", (1, 1)), tmp_path / "a.png", {key: "v"})
    assert list(tmp_path.iterdir()) == []
