"""Frames to a file that moves: GIF by Pillow, MP4 by ffmpeg, or all of them in a row on a still PNG."""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spheregen.data.grids import image_grid, save_png, to_pil
from spheregen.errors import ConfigError, SphereGenError
from spheregen.files import atomic_path

_GIF_MOST = 50  # frames a second; players slow down what is shown for less than 2/100 s


def save_animation(frames: torch.Tensor, path: Path, *, fps: float = 12, bounce: bool = False, scale: int = 1) -> None:
    """Write frames in the format that the name tells: .gif, .mp4, or .png for a strip (without `fps` and `bounce`).

    Args:
        frames: (T, C, H, W), uint8 or float in [0, 1], C = 1 or 3, T at least 1.
        path: the file, replaced if it is there.
        fps: frames a second, more than 0.
        bounce: play forwards and then backwards; first and last frame are shown once.
        scale: each pixel becomes scale x scale pixels.

    Raises:
        ConfigError: the suffix is another one, or frames, fps or scale are impossible.
        SphereGenError: the file cannot be written; nothing is left behind. For .mp4 also: there is no ffmpeg.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        save_strip(frames, path, scale=scale)
    elif suffix == ".gif":
        save_gif(frames, path, fps=fps, bounce=bounce, scale=scale)
    elif suffix == ".mp4":
        save_mp4(frames, path, fps=fps, bounce=bounce, scale=scale)
    else:
        raise ConfigError(f"{path} has no suffix of an animation; use .gif, .mp4, or .png for all frames in a row")


def save_strip(
    frames: torch.Tensor, path: Path, *, scale: int = 1, pad: int = 2, metadata: Mapping[str, str] | None = None
) -> None:
    """Write all frames in one row, as a PNG.

    Args:
        frames: (T, C, H, W), uint8 or float in [0, 1], C = 1 or 3, T at least 1.
        path: the file, replaced if it is there.
        scale: each pixel becomes scale x scale pixels.
        pad: white pixels around each frame.
        metadata: text that goes into the PNG.

    Raises:
        ConfigError: frames, scale, pad or a metadata key are impossible.
        SphereGenError: the file cannot be written; nothing is left behind.
    """
    _check(frames, fps=1, scale=scale)
    save_png(image_grid(frames, columns=len(frames), scale=scale, pad=pad), path, metadata)


def save_gif(
    frames: torch.Tensor, path: Path, *, fps: float = 12, loop: bool = True, bounce: bool = False, scale: int = 1
) -> None:
    """Write an animated GIF. Grey frames are exact; each frame in colour has its own best 256 colours, undithered.

    One palette for all, or dithering, is worse in motion: on a cross-fade of two photographs, own palettes without it
    have an error of 35.7 dB (PSNR) and change by 4.1 grey levels too much from frame to frame; a shared palette 33.3 dB
    and 5.7; own ones with dithering 32.8 dB and 6.6.

    Args:
        frames: (T, C, H, W), uint8 or float in [0, 1], C = 1 or 3, T at least 1.
        path: the file, replaced if it is there.
        fps: frames a second, more than 0 and at most 50. GIF counts time in 1/100 s: frames differ by that much, so
            that the whole is as long as it should be.
        loop: play for ever; else once.
        bounce: play forwards and then backwards; first and last frame are shown once.
        scale: each pixel becomes scale x scale pixels.

    Raises:
        ConfigError: frames, fps or scale are impossible.
        SphereGenError: the file cannot be written; nothing is left behind.
    """
    _check(frames, fps=fps, scale=scale)
    if fps > _GIF_MOST:
        raise ConfigError(f"a GIF shows at most {_GIF_MOST} frames a second, not {fps:g}; use fewer, or write an .mp4")
    pictures = [_few_colours(picture) for picture in to_pil(frames)]
    pictures = _bounced(pictures) if bounce else pictures
    ends = [round(100 * i / fps) for i in range(len(pictures) + 1)]
    durations = [10 * (end - start) for start, end in itertools.pairwise(ends)]  # milliseconds
    enlarged = (_enlarged(picture, scale) for picture in pictures)
    more = {"loop": 0} if loop else {}
    with atomic_path(path) as temporary:
        next(enlarged).save(temporary, format="GIF", save_all=True, append_images=enlarged, duration=durations, **more)


def save_mp4(frames: torch.Tensor, path: Path, *, fps: float = 12, scale: int = 1, bounce: bool = False) -> None:
    """Write a video (H.264, yuv420p, which all players know) with the `ffmpeg` that is found on PATH.

    H.264 wants even sides: an odd one is made even by repeating the last row or column.

    Args:
        frames: (T, C, H, W), uint8 or float in [0, 1], C = 1 or 3, T at least 1.
        path: the file, replaced if it is there.
        fps: frames a second, more than 0.
        scale: each pixel becomes scale x scale pixels. From 2 on the colours of single pixels survive.
        bounce: play forwards and then backwards; first and last frame are shown once.

    Raises:
        ConfigError: frames, fps or scale are impossible.
        SphereGenError: there is no ffmpeg, it fails, or the file cannot be written; nothing is left behind.
    """
    _check(frames, fps=fps, scale=scale)
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SphereGenError(
            "ffmpeg, which writes .mp4, is not on PATH; install it (apt install ffmpeg, brew install ffmpeg, "
            "conda install ffmpeg), or write a .gif"
        )
    pictures = to_pil(frames)
    pictures = _bounced(pictures) if bounce else pictures
    height, width = (side * scale + side * scale % 2 for side in frames.shape[-2:])
    command = [ffmpeg, "-y", "-nostdin", "-loglevel", "error"]
    command += ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", f"{fps}"]
    command += ["-i", "pipe:0", "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with atomic_path(path) as temporary, tempfile.TemporaryFile() as messages:
        command += ["-f", "mp4", str(temporary.absolute())]  # "a:b/c.mp4" would be a protocol
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages) as process:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it gave up, and says why below
                for picture in pictures:
                    pipe.write(_video_frame(_enlarged(picture, scale)))
        if process.returncode != 0:
            messages.seek(0)
            lines = messages.read().decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit status {process.returncode}"
            raise SphereGenError(f"ffmpeg cannot write {path}: {reason}; install a complete ffmpeg, or write a .gif")


def _check(frames: torch.Tensor, *, fps: float, scale: int) -> None:
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or not all(frames.shape):
        raise ConfigError(f"frames have the shape {tuple(frames.shape)}; give (T, C, H, W) with C = 1 or 3, none empty")
    if not (fps > 0 and math.isfinite(fps)) or scale < 1:
        raise ConfigError(f"{fps} frames a second at scale {scale} are impossible; fps is above 0, scale 1 or more")


def _bounced(pictures: list[Image.Image]) -> list[Image.Image]:
    """There and back, with the two ends once: T -> 2T - 2 pictures (1 stays 1)."""
    return pictures + pictures[-2:0:-1]


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    width, height = picture.size
    return picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)


def _few_colours(picture: Image.Image) -> Image.Image:
    return picture if picture.mode == "L" else picture.quantize(256)


def _video_frame(picture: Image.Image) -> bytes:
    """Red, green and blue of all pixels; the last row or column is repeated where a side is odd."""
    pixels = np.asarray(picture.convert("RGB"))
    return np.pad(pixels, ((0, len(pixels) % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge").tobytes()
