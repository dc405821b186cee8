"""Sheets with labels: nothing overlaps, nothing is cut, all is there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from spheregen.data import image_grid, labelled_sheet
from spheregen.data import sheets as module
from spheregen.errors import ConfigError

Box = tuple[int, int, int, int]  # left, top, right, bottom

TEXTS = [
    "a",
    "",
    "4 steps",
    "guidance 1.5, fresh noise at each of the four steps, and a few words more",
    "sphere-s-64_2026-03-05_cfg1.5_steps4_seed0",
    "x" * 120,
    "two\nlines",
    "W" * 7 + " j" * 9,
]


@dataclass
class Seen:
    """What was drawn where."""

    texts: list[tuple[str, Box]] = field(default_factory=list)
    pictures: list[tuple[Image.Image, Box]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    result = Seen()
    grids: list[Image.Image] = []
    draw_text, paste = ImageDraw.ImageDraw.text, Image.Image.paste

    def text(self: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, **options: Any) -> None:
        left, top, right, bottom = options["font"].getbbox(text)
        if text:
            result.texts.append((text, (xy[0] + int(left), xy[1] + int(top), xy[0] + int(right), xy[1] + int(bottom))))
        draw_text(self, xy, text, **options)

    def grid(*arguments: Any, **options: Any) -> Image.Image:
        grids.append(image_grid(*arguments, **options))
        return grids[-1]

    def record(self: Image.Image, im: Image.Image, box: tuple[int, int]) -> None:
        if any(im is one for one in grids):
            result.pictures.append((im, (*box, box[0] + im.width, box[1] + im.height)))
        paste(self, im, box)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    monkeypatch.setattr(Image.Image, "paste", record)
    monkeypatch.setattr(module, "image_grid", grid)
    return result


def cell(count: int, side: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count * side)
    return torch.rand(count, channels, side, side, generator=generator)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check(sheet: Image.Image, seen: Seen, margin: int = 10) -> None:
    boxes = [box for _, box in seen.texts] + [box for _, box in seen.pictures]
    for left, top, right, bottom in boxes:
        assert margin <= left <= right <= sheet.width - margin
        assert margin <= top <= bottom <= sheet.height - margin
    for a, b in itertools.combinations(boxes, 2):
        assert not overlap(a, b)
    for grid, box in seen.pictures:
        assert sheet.crop(box).tobytes() == grid.convert("RGB").tobytes()
    pixels = np.array(sheet)
    for edge in (pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:]):
        assert (edge == 255).all()


@pytest.mark.parametrize(("side", "count"), [(8, 1), (8, 5), (64, 5), (256, 1)])
@pytest.mark.parametrize("shift", range(len(TEXTS)))
def test_nothing_overlaps_and_nothing_is_cut(seen: Seen, side: int, count: int, shift: int) -> None:
    texts = TEXTS[shift:] + TEXTS[:shift]
    rows = [[cell(count, side), None, cell(2 * count, side, 1)], [None, cell(1, side // 2), cell(count, side)]]
    notes = [texts[3:6], texts[5:8]]
    sheet = labelled_sheet(rows, texts[:2], texts[2:5], title=texts[5], notes=notes)
    check(sheet, seen)
    assert sheet.mode == "RGB"
    assert len(seen.pictures) == 4
    drawn = "".join(text for text, _ in seen.texts)
    wanted = [*texts[:2], *texts[2:5], texts[5], *texts[3:6], *texts[5:8]]
    assert sorted("".join(drawn.split())) == sorted("".join("".join(wanted).split()))


def test_labels_are_where_they_belong(seen: Seen) -> None:
    rows = [[cell(4, 16) for _ in range(3)] for _ in range(2)]
    notes = [[f"n{r}{k}" for k in range(3)] for r in range(2)]
    labelled_sheet(rows, ["r0", "r1"], ["c0", "c1", "c2"], title="t", notes=notes)
    texts = dict(seen.texts)
    for place, (_, (left, top, right, bottom)) in enumerate(seen.pictures):
        r, k = divmod(place, 3)
        assert texts[f"r{r}"][2] < left and top < texts[f"r{r}"][1] < texts[f"r{r}"][3] < bottom
        for text, above in ((f"c{k}", True), (f"n{r}{k}", False)):
            box = texts[text]
            assert abs((box[0] + box[2]) - (left + right)) <= 4  # centred
            assert box[3] <= top if above else bottom <= box[1]
        assert texts["t"][3] < texts[f"c{k}"][1]


def test_a_cell_is_the_grid_of_its_pictures(seen: Seen) -> None:
    pictures = cell(6, 9)
    for dtype in (torch.float32, torch.uint8):
        values = pictures if dtype == torch.float32 else (pictures * 255).round().to(torch.uint8)
        labelled_sheet([[values]], [""], [""], scale=3, pad=1)
        assert seen.pictures[-1][0].tobytes() == image_grid(values, scale=3, pad=1).tobytes()


def test_without_texts_there_is_little_around_the_pictures() -> None:
    sheet = labelled_sheet([[cell(1, 32)]], [""], [""])
    assert sheet.size == (36 + 24, 36 + 24)


@pytest.mark.parametrize("side", [8, 32, 128, 256])
def test_letters_are_legible_beside_any_picture(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    sizes = []
    load = module._load_font
    monkeypatch.setattr(module, "_load_font", lambda size: sizes.append(size) or load(size))  # type: ignore[func-returns-value]
    labelled_sheet([[cell(16, side)]], ["row"], ["column"], title="title", notes=[["note"]])
    assert 11 <= min(sizes) <= max(sizes) <= 28


def test_lines_are_broken_between_words_and_about_equal(seen: Seen) -> None:
    labelled_sheet([[cell(1, 8)]], ["one two three four five six seven eight nine ten"], [""])
    lines = [text for text, _ in seen.texts]
    assert " ".join(lines) == "one two three four five six seven eight nine ten"
    assert max(map(len, lines)) - min(map(len, lines)) <= 6
    seen.texts.clear()
    labelled_sheet([[cell(1, 8)]], ["sphere-s-64_2026-03-05_cfg1.5_steps4_seed0"], [""])
    lines = [text for text, _ in seen.texts]
    assert len(lines) > 1 and all(line[-1] in "-_" for line in lines[:-1])


def test_letters_that_the_font_lacks(seen: Seen) -> None:
    labelled_sheet([[cell(1, 64)]], ["café e\u0301 σ"], ["2×2 → 球\t\x00\udcff"], title="Δ ±1 ↓")
    texts = [text for text, _ in seen.texts]
    assert texts == ["Delta ±1 (down)", "2x2 -> ? ??", "cafe e sigma"]


def test_pillow_without_freetype(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> None:
    def without(size: float | None = None) -> ImageFont.ImageFont:
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return ImageFont.load_default_imagefont()

    monkeypatch.setattr(ImageFont, "load_default", without)
    module._load_font.cache_clear()
    module._spelled.cache_clear()
    try:
        sheet = labelled_sheet([[cell(4, 16)] * 2], ["café 球"], TEXTS[3:5], title="t", notes=[["n", "σ"]])
    finally:
        module._load_font.cache_clear()
        module._spelled.cache_clear()
    check(sheet, seen)
    assert {"cafe ?", "t", "n", "sigma"} <= {text for text, _ in seen.texts}


def test_the_same_cells_give_the_same_sheet() -> None:
    sheets = [labelled_sheet([[cell(3, 8)]], ["r"], ["c"], title="t", notes=[["n"]]) for _ in range(2)]
    assert sheets[0].tobytes() == sheets[1].tobytes()


def test_what_does_not_fit_together() -> None:
    one = cell(1, 4)
    with pytest.raises(ConfigError, match="without rows"):
        labelled_sheet([], [], ["c"])
    with pytest.raises(ConfigError, match="without rows"):
        labelled_sheet([[]], ["r"], [])
    for rows, row_labels in (([[one]], []), ([[one, one]], ["r"]), ([[one], []], ["r", "s"])):
        with pytest.raises(ConfigError, match="do not fit"):
            labelled_sheet(rows, row_labels, ["c"])
    for notes in ([], [["a", "b"]], [["a"], ["b"]]):
        with pytest.raises(ConfigError, match="notes"):
            labelled_sheet([[one]], ["r"], ["c"], notes=notes)
    for bad in (torch.zeros(0, 3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(1, 2, 4, 4)):
        with pytest.raises(ConfigError):
            labelled_sheet([[bad]], ["r"], ["c"])
    with pytest.raises(ConfigError):
        labelled_sheet([[one]], ["r"], ["c"], scale=0)
