"""Images out: tensors to PIL, grids and labelled sheets, PNG files that say where they come from, and animations.

Animations are GIF and WebP by Pillow, MP4 by ffmpeg, which imageio-ffmpeg brings where there is none, or all
frames in a row on a still PNG.
"""

from __future__ import annotations

import io
import itertools
import math
import shutil
import statistics
import subprocess
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

import spheregen
from spheregen.errors import ConfigError, SphereGenError
from spheregen.files import atomic_path
from spheregen.pixels import read_image

Rounding = Literal["round", "floor"]

_GIF_MOST = 50  # frames a second; players slow down what is shown for less than 2/100 s


def to_uint8(images: torch.Tensor, *, rounding: Rounding = "round") -> torch.Tensor:
    """Convert float images in [0, 1] to uint8 0..255, any shape; values outside are clamped, NaN becomes 0.

    "round" is round(255 * x), which inverts x = value / 255 and has no bias; "floor" is floor(255 * x), the published
    code's rule, half a level darker on average: use it only to compare with numbers made that way.
    """
    scaled = torch.nan_to_num(images.detach().to(torch.float32)).clamp(0.0, 1.0) * 255.0
    return (scaled.floor() if rounding == "floor" else scaled.round()).to(torch.uint8)


def to_array(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Convert images (N, C, H, W), uint8 or float in [0, 1], to uint8 (N, H, W, 3), or (N, H, W) if C = 1.

    Raises:
        ConfigError: they have another shape.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ConfigError(f"images have the shape {tuple(images.shape)}; give (N, C, H, W) with C = 1 or 3")
    values = (images.detach() if images.dtype == torch.uint8 else to_uint8(images)).cpu()
    result: npt.NDArray[np.uint8] = values.permute(0, 2, 3, 1).contiguous().numpy()
    return result[..., 0] if result.shape[-1] == 1 else result


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Convert (N, C, H, W), uint8 or float in [0, 1], C = 1 or 3, to N images of mode L or RGB."""
    return [Image.fromarray(pixels) for pixels in to_array(images)]


def image_grid(
    images: torch.Tensor,
    *,
    columns: int | None = None,
    scale: int = 1,
    pad: int = 2,
) -> Image.Image:
    """Lay N images on one sheet, row by row.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1], C = 1 (sheet of mode L) or 3 (RGB).
        columns: images in a row; by default the sheet is about square.
        scale: each pixel becomes scale x scale pixels.
        pad: white pixels around each image, shared between neighbours.

    Returns:
        An image of columns * (W * scale + pad) + pad by rows * (H * scale + pad) + pad pixels.

    Raises:
        ConfigError: there are no images, they have another shape, or an argument is below 1 (pad: 0).
    """
    pixels = to_array(images)
    count = len(pixels)
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if count < 1 or columns < 1 or scale < 1 or pad < 0:
        raise ConfigError(f"no grid has {count} images, columns {columns}, scale {scale} and pad {pad}; give 1 or more")
    columns = min(columns, count)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = pixels.shape[1] + pad, pixels.shape[2] + pad
    sheet = Image.new("RGB", (columns * width + pad, math.ceil(count / columns) * height + pad), "white")
    if pixels.ndim == 3:
        sheet = sheet.convert("L")
    for place, image in enumerate(pixels):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(image), (pad + column * width, pad + row * height))
    return sheet


class _Text(NamedTuple):
    lines: str
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    width: int
    height: int


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
    """Draw a table of images: each cell a grid as square as can be, labels above and at the left, notes below.

    Long texts are broken into lines, and columns, rows and margins grow with them, so that nothing overlaps or is cut.
    Letters lose their accents, which Pillow's own font lacks.

    Args:
        rows: R rows of K cells: (n, C, H, W), uint8 or float in [0, 1], C = 1 or 3, or None for an empty cell. Cells
            may differ in n, C, H and W.
        row_labels: R texts; may be empty.
        column_labels: K texts; may be empty.
        title: above the whole.
        scale: each pixel of an image becomes scale x scale pixels.
        pad: white pixels around each image of a cell.
        notes: R rows of K short texts, such as scores.

    Returns:
        An image of mode RGB, black on white; its size follows from the contents. Letters are 12 to 20 pixels high.

    Raises:
        ConfigError: rows, labels and notes do not agree in number, there are none, or a cell is no set of images.
    """
    notes = [[""] * len(column_labels)] * len(rows) if notes is None else notes
    shape = [len(column_labels)] * len(row_labels)
    if not shape or not column_labels or not [len(row) for row in rows] == shape == [len(row) for row in notes]:
        raise ConfigError("a sheet needs one label for each row and column, and as many notes as cells, if any")
    grids = [[None if cell is None else image_grid(cell, scale=scale, pad=pad) for cell in row] for row in rows]
    sides = [math.sqrt(grid.width * grid.height) for row in grids for grid in row if grid]
    size = gap = round(min(max(statistics.median(sides or [0]) / 16, 12), 20))  # letters, beside small and large cells
    columns = range(len(column_labels))
    limits = [max(7 * size, *(grid.width for row in grids if (grid := row[k])), 0) for k in columns]
    head = _text(title, round(1.4 * size), max(sum(limits), 28 * size))
    top = [_text(label, size, limit) for label, limit in zip(column_labels, limits, strict=True)]
    left = [_text(label, size, 14 * size) for label in row_labels]
    below = [[_text(note, size - 1, limit) for note, limit in zip(row, limits, strict=True)] for row in notes]

    widths = [
        max(top[k].width, *(note[k].width for note in below), *(grid.width for row in grids if (grid := row[k])))
        for k in columns
    ]
    heights = [max(part.height for part in (label, *row) if part) for label, row in zip(left, grids, strict=True)]
    tails = [max(note.height for note in row) for row in below]
    margin = max(label.width for label in left)
    xs = list(itertools.accumulate(widths, lambda x, width: x + width + gap, initial=gap + margin + gap * bool(margin)))
    y = gap + (head.height + gap) * bool(title) + max(label.height for label in top)
    sheet = Image.new(
        "RGB", (max(xs[-1], head.width + 2 * gap), y + sum(heights) + sum(tails) + gap * len(rows)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    _draw(draw, head, (gap, gap), "la")
    for label, x, width in zip(top, xs, widths, strict=False):
        _draw(draw, label, (x + width // 2, y - label.height), "ma")
    for r, label in enumerate(left):
        _draw(draw, label, (gap + margin, y + (heights[r] - label.height) // 2), "ra")
        for grid, note, x, width in zip(grids[r], below[r], xs, widths, strict=False):
            if grid:
                sheet.paste(grid, (x + (width - grid.width) // 2, y + (heights[r] - grid.height) // 2))
            _draw(draw, note, (x + width // 2, y + heights[r]), "ma", (90, 90, 90))
        y += heights[r] + tails[r] + gap
    return sheet


def encode_png(image: Image.Image, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a PNG file with `metadata` as text chunks (tEXt; iTXt where Latin-1 does not suffice).

    `Software` comes first, by which our files are known.

    Raises:
        ConfigError: a key is no PNG keyword (1 to 79 Latin-1 characters).
    """
    text = PngImagePlugin.PngInfo()
    for key, value in ({"Software": f"spheregen {spheregen.__version__}"} | dict(metadata or {})).items():
        if not 0 < len(key) < 80 or not all(0 < ord(letter) < 256 for letter in key):
            raise ConfigError(f"{key!r} cannot name PNG metadata; use 1 to 79 Latin-1 characters")
        text.add_text(key, value.encode("utf-8", "replace").decode())  # names of files may be no text
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def save_png(
    image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write what `encode_png` makes to a file, atomically; a SphereGenError tells that it cannot be written.

    `durable=False` leaves the flush to the system: for thousands of images that can be made again.
    """
    data = encode_png(image, metadata)
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the text that `save_png` put into a PNG file; a DataError tells that it is missing or no image."""
    image = read_image(path)
    return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}


def _text(text: str, size: int, limit: int) -> _Text:
    """Break a text into lines of about `limit` pixels at most."""
    font = ImageFont.load_default(size)
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    letters = max(1, int(limit / font.getlength("n")))
    lines = "\n".join(line for part in plain.splitlines() for line in textwrap.wrap(part, letters) or [""])
    if not lines:
        return _Text("", font, 0, 0)
    box = ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), lines, font=font)
    return _Text(lines, font, math.ceil(box[2]) + 2, math.ceil(box[3]) + size // 4)


def _draw(
    draw: ImageDraw.ImageDraw,
    text: _Text,
    place: tuple[int, int],
    anchor: Literal["la", "ma", "ra"],
    colour: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Draw lines whose upper left corner, middle or right corner (the anchor) is at a place."""
    align = {"la": "left", "ma": "center", "ra": "right"}[anchor]
    draw.multiline_text(place, text.lines, fill=colour, font=text.font, anchor=anchor, align=align)


def save_animation(frames: torch.Tensor, path: Path, *, fps: float = 12, bounce: bool = False, scale: int = 1) -> None:
    """Write frames in the format that the name tells: .gif, .webp, .mp4, or .png for a strip.

    Grey frames are exact in a GIF; each frame in colour has its own best 256 colours, undithered, which is better in
    motion than one palette for all. WebP is lossless. MP4 is H.264 in yuv420p, which all players know, by ffmpeg (see
    `find_ffmpeg`); it wants even sides: of an odd one the last row or column is repeated.

    Args:
        frames: (T, C, H, W), uint8 or float in [0, 1], C = 1 or 3, T at least 1.
        path: the file, replaced if it is there.
        fps: frames a second, more than 0; of a GIF at most 50. GIF counts time in 1/100 s: frames differ by that much,
            so that the whole is as long as it should be.
        bounce: play forwards and then backwards; first and last frame are shown once.
        scale: each pixel becomes scale x scale pixels.

    Raises:
        ConfigError: the suffix is another one, or frames, fps or scale are impossible.
        SphereGenError: the file cannot be written; nothing is left behind. For .mp4 also: there is no ffmpeg.
    """
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".webp", ".mp4", ".png"):
        raise ConfigError(f"{path} has no suffix of an animation; use .gif, .webp, .mp4, or .png for frames in a row")
    pixels = to_array(frames)
    if not pixels.size or scale < 1:
        raise ConfigError(f"frames of shape {tuple(frames.shape)} at scale {scale} are impossible; give 1 at least")
    if suffix == ".png":
        save_png(image_grid(frames, columns=len(frames), scale=scale), path)
        return
    if not (fps > 0 and math.isfinite(fps)):
        raise ConfigError(f"{fps:g} frames a second are impossible; give fps above 0")
    if suffix == ".gif" and fps > _GIF_MOST:
        raise ConfigError(f"a GIF shows at most {_GIF_MOST} frames a second, not {fps:g}; use fewer, or write an .mp4")
    if bounce:
        pixels = np.concatenate([pixels, pixels[-2:0:-1]])
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    if suffix == ".mp4":
        _save_mp4(pixels, path, fps)
        return
    images = [Image.fromarray(frame) for frame in pixels]
    if suffix == ".gif" and pixels.ndim == 4:
        images = [image.quantize(256) for image in images]
    ends = [10 * round(100 * i / fps) for i in range(len(images) + 1)]
    options: dict[str, Any] = {"duration": [end - start for start, end in itertools.pairwise(ends)]}  # milliseconds
    options |= {"lossless": True} if suffix == ".webp" else {"comment": b"Software\0spheregen"}
    with atomic_path(path) as temporary:
        images[0].save(temporary, format=suffix[1:], save_all=True, append_images=images[1:], loop=0, **options)


def find_ffmpeg() -> str | None:
    """Return the program ffmpeg on PATH, else the one that imageio-ffmpeg brings; None where there is neither."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):  # not installed, or without a program for this machine
        return None


def _save_mp4(pixels: npt.NDArray[np.uint8], path: Path, fps: float) -> None:
    """Write frames (T, H, W) or (T, H, W, 3) as a video."""
    ffmpeg = find_ffmpeg()
    if ffmpeg is None:
        raise SphereGenError('ffmpeg, which writes .mp4, is missing: pip install "spheregen[video]", or write a .gif')
    if pixels.ndim == 3:
        pixels = pixels[..., None].repeat(3, axis=3)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    size = f"{pixels.shape[2]}x{pixels.shape[1]}"
    command = [ffmpeg, "-y", "-loglevel", "error", "-f", "rawvideo", "-pixel_format", "rgb24"]
    command += ["-video_size", size, "-framerate", f"{fps}", "-i", "pipe:0", "-c:v", "libx264", "-crf", "16"]
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
    with atomic_path(path) as temporary:  # an absolute path, since "a:b/c.mp4" would be a protocol
        done = subprocess.run([*command, str(temporary.absolute())], input=pixels.tobytes(), capture_output=True)
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
            raise SphereGenError(f"ffmpeg cannot write {path}: {reason}; install a complete ffmpeg, or write a .gif")
