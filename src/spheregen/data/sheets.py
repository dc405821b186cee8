"""Contact sheets with words: a table of small grids of pictures whose rows and columns have names."""

from __future__ import annotations

import bisect
import functools
import math
import re
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont

from spheregen.data.grids import image_grid
from spheregen.errors import ConfigError

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_BLACK, _GREY = (0, 0, 0), (90, 90, 90)
_SMALLEST, _LARGEST = 12, 20  # font size in pixels, beside small and large cells
_CELL_WIDTH, _ROW_LABEL_WIDTH, _TITLE_WIDTH = 7, 14, 28  # in font sizes: a longer text is broken into lines
_SPELLED = dict(
    pair.split(maxsplit=1) for pair in ("× x", "± +-", "→ ->", "← <-", "↑ (up)", "↓ (down)", "≤ <=", "≥ >=")
)
_SPELLED |= dict(zip("–—−‘’“”≈·ßæø", ("-", "-", "-", "'", "'", '"', '"', "~", ".", "ss", "ae", "o"), strict=True))


def labelled_sheet(
    rows: Sequence[Sequence[torch.Tensor | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str = "",
    scale: int = 1,
    pad: int = 2,
    notes: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    """A table of pictures: each cell a grid as square as can be, labels above and at the left, notes below the cells.

    Long texts are broken into lines, and columns, rows and margins grow with them, so that nothing overlaps or is cut.
    Letters that Pillow's own font lacks are spelled otherwise (é as e, σ as sigma) or become a question mark.

    Args:
        rows: R rows of K cells: (n, C, H, W), uint8 or float in [0, 1], C = 1 or 3, or None for an empty cell. Cells
            may differ in n, C, H and W.
        row_labels: R texts; may be empty.
        column_labels: K texts; may be empty.
        title: above the whole.
        scale: each pixel of a picture becomes scale x scale pixels.
        pad: white pixels around each picture of a cell.
        notes: R rows of K short texts, such as scores.

    Returns:
        A picture of mode RGB, black on white; its size follows from the contents. Letters are 12 to 20 pixels high.

    Raises:
        ConfigError: rows, labels and notes do not agree in number, there are none, or a cell is no set of pictures.
    """
    _check(rows, row_labels, column_labels, notes)
    grids = [[None if cell is None else image_grid(cell, scale=scale, pad=pad) for cell in row] for row in rows]
    size = _font_size(grids)
    gap = size  # between cells, and around the whole
    columns = range(len(column_labels))

    grid_widths = [max((grid.width for row in grids if (grid := row[k])), default=0) for k in columns]
    limits = [max(width, _CELL_WIDTH * size) for width in grid_widths]
    top = [_set(text, size, limit) for text, limit in zip(column_labels, limits, strict=True)]
    left = [_set(text, size, _ROW_LABEL_WIDTH * size) for text in row_labels]
    below = [
        [_set(notes[r][k] if notes else "", size - 1, limits[k], _GREY) for k in columns] for r in range(len(rows))
    ]
    widths = [max(grid_widths[k], top[k].width, *(row[k].width for row in below)) for k in columns]
    heights = [
        max(label.height, *(grid.height if grid else 0 for grid in row)) for label, row in zip(left, grids, strict=True)
    ]
    margin = max(label.width for label in left)
    margin += gap if margin else 0
    content = margin + sum(widths) + gap * (len(widths) - 1)
    head = _set(title, round(1.4 * size), max(content, _TITLE_WIDTH * size))
    top_height = max(label.height for label in top)
    note_heights = [max(note.height for note in row) for row in below]

    y = gap + (head.height + gap if head.lines else 0) + (top_height + gap // 3 if top_height else 0)
    sheet = Image.new(
        "RGB",
        (2 * gap + max(content, head.width), y + sum(heights) + sum(note_heights) + gap * len(rows)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    head.draw(draw, gap, gap, head.width, align=0)
    lefts = [gap + margin + sum(widths[:k]) + gap * k for k in columns]
    for label, x, width in zip(top, lefts, widths, strict=True):
        label.draw(draw, x, y - gap // 3 - label.height, width)
    for label, row, height, row_notes, note_height in zip(left, grids, heights, below, note_heights, strict=True):
        label.draw(draw, gap, y + (height - label.height) // 2, max(0, margin - gap), align=1)
        for grid, note, x, width in zip(row, row_notes, lefts, widths, strict=True):
            if grid:
                sheet.paste(grid, (x + (width - grid.width) // 2, y + (height - grid.height) // 2))
            note.draw(draw, x, y + height, width)
        y += height + note_height + gap
    return sheet


@dataclass(frozen=True, kw_only=True)
class _Text:
    """Lines that are ready to be drawn."""

    lines: tuple[str, ...]
    font: _Font
    line_height: int
    color: tuple[int, int, int]

    @property
    def width(self) -> int:
        return max((_width(line, self.font) for line in self.lines), default=0)

    @property
    def height(self) -> int:
        return self.line_height * len(self.lines)

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int, width: int, *, align: float = 0.5) -> None:
        """Draw into a box of some width; align 0 is at its left, 1 at its right."""
        for number, line in enumerate(self.lines):
            x = left + round(align * (width - _width(line, self.font)))
            draw.text((x, top + number * self.line_height), line, fill=self.color, font=self.font)


def _check(
    rows: Sequence[Sequence[torch.Tensor | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    notes: Sequence[Sequence[str]] | None,
) -> None:
    if not rows or not column_labels:
        raise ConfigError("a sheet without rows or columns is impossible; give at least one of each, and their labels")
    if len(row_labels) != len(rows) or any(len(row) != len(column_labels) for row in rows):
        raise ConfigError(
            f"{len(rows)} rows of {' or '.join(map(str, sorted({len(row) for row in rows})))} cells do not fit "
            f"{len(row_labels)} row labels and {len(column_labels)} column labels; give one label for each row and "
            "column, and None for an empty cell"
        )
    if notes is not None and [len(row) for row in notes] != [len(row) for row in rows]:
        raise ConfigError("the notes do not fit the cells; give one for each cell, empty ones where there is none")


def _font_size(grids: Sequence[Sequence[Image.Image | None]]) -> int:
    """A sixteenth of the usual cell's side, within what is easy to read."""
    sides = [math.sqrt(grid.width * grid.height) for row in grids for grid in row if grid]
    return round(min(max(statistics.median(sides or [0]) / 16, _SMALLEST), _LARGEST))


def _set(text: str, size: int, limit: int, color: tuple[int, int, int] = _BLACK) -> _Text:
    """Break a text into lines of at most `limit` pixels, of about equal length."""
    font = _load_font(size)
    text = _drawable(text)
    lines = _wrapped(text, font, limit)
    words = [_width(word, font) for word in text.split()]
    parts = [_width(part, font) for word in text.split() for part in _parts(word)]
    narrowest = max((width for width in words + parts if width <= limit), default=limit)  # breaks no more words
    limits = range(narrowest, limit)
    balanced = bisect.bisect_left(limits, True, key=lambda width: len(_wrapped(text, font, width)) <= len(lines))
    lines = _wrapped(text, font, narrowest + balanced)
    return _Text(lines=tuple(lines), font=font, line_height=_line_height(font), color=color)


def _wrapped(text: str, font: _Font, limit: int) -> list[str]:
    """Lines of at most `limit` pixels (or one letter): broken between words; in a word only if it is too long for a
    line, then between its parts, or anywhere if a part is too long."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if _width(longer, font) <= limit:
                line = longer
                continue
            if line:
                lines.append(line)
            line = ""
            for part in _parts(word):
                for piece in [part] if _width(part, font) <= limit else part:
                    if line and _width(line + piece, font) > limit:
                        lines.append(line)
                        line = ""
                    line += piece
        lines.append(line)
    return lines


def _parts(word: str) -> list[str]:
    """A word cut behind signs that join: sphere- s- 64_ cfg1.5."""
    return re.findall(r"[^-_/=]*[-_/=]+|[^-_/=]+", word)


@functools.cache
def _load_font(size: int) -> _Font:
    try:
        return ImageFont.load_default(size=size)
    except ImportError:  # Pillow without FreeType has one font of one size
        return ImageFont.load_default()


@functools.lru_cache(maxsize=10_000)
def _width(line: str, font: _Font) -> int:
    return math.ceil(font.getlength(line)) + 1  # the last letter may reach a little further


def _line_height(font: _Font) -> int:
    return math.ceil(font.getbbox("Égjpqy|")[3]) + 2


def _drawable(text: str) -> str:
    """A text in the letters that the font has."""
    return "".join(char if char == "\n" else _spelled(char) for char in text.replace("\r\n", "\n"))


@functools.cache
def _spelled(char: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", char) if unicodedata.category(c) not in ("Mn", "Cf"))
    if char.isspace():
        return " "
    if _has_letter(char):
        return char
    if char in _SPELLED:
        return _SPELLED[char]
    if plain != char and all(map(_has_letter, plain)):
        return plain
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(char, ""))
    return (greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize()) if greek else "?"


def _has_letter(char: str) -> bool:
    font = _load_font(_SMALLEST)
    if isinstance(font, ImageFont.ImageFont):
        return char.isascii()
    return char.isprintable() and bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))
