"""Frames to a file that moves: GIF and WebP by Pillow, MP4 by ffmpeg, or all of them in a row on a still PNG."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from spheregen.data.grids import image_grid, save_png, to_array
from spheregen.errors import ConfigError, SphereGenError
from spheregen.files import atomic_path

_GIF_MOST = 50  # frames a second; players slow down what is shown for less than 2/100 s


def save_animation(frames: torch.Tensor, path: Path, *, fps: float = 12, bounce: bool = False, scale: int = 1) -> None:
    """Write frames in the format that the name tells: .gif, .webp, .mp4, or .png for a strip.

    Grey frames are exact in a GIF; each frame in colour has its own best 256 colours, undithered, which is better in
    motion than one palette for all. WebP is lossless. MP4 is H.264 in yuv420p, which all players know, by the `ffmpeg`
    on PATH; it wants even sides: of an odd one the last row or column is repeated.

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
        raise ConfigError(
            f"frames of shape {tuple(frames.shape)} at scale {scale} are impossible; give a pixel and scale 1 at least"
        )
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
    ends = [10 * round(100 * i / fps) for i in range(len(images) + 1)]  # milliseconds
    durations = [end - start for start, end in itertools.pairwise(ends)]
    more = {"lossless": True} if suffix == ".webp" else {}
    with atomic_path(path) as temporary:
        images[0].save(
            temporary,
            format=suffix[1:],
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
            **more,
        )


def _save_mp4(pixels: npt.NDArray[np.uint8], path: Path, fps: float) -> None:
    """Write frames (T, H, W) or (T, H, W, 3) as a video."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SphereGenError(
            "ffmpeg, which writes .mp4, is not on PATH; install it (apt install ffmpeg, brew install ffmpeg, "
            "conda install ffmpeg), or write a .gif"
        )
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
