"""Frames as GIF, WebP, MP4 and strip."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from spheregen.data import save_animation
from spheregen.errors import SphereGenError
from tests.random_networks import import_or_skip


def clip(count: int = 5, channels: int = 3, height: int = 6, width: int = 8) -> torch.Tensor:
    """Frames of random colours, all different."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def enlarged(frames: torch.Tensor, scale: int) -> torch.Tensor:
    return frames.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def read(path: Path) -> tuple[torch.Tensor, list[int]]:
    """Frames (T, 3, H, W) uint8 and durations in milliseconds."""
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        frames = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    return torch.from_numpy(np.stack([pixels for pixels, _ in frames])).permute(0, 3, 1, 2), [d for _, d in frames]


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stores its arguments and input in the file that it should write."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "data = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'wb').write('\\n'.join(sys.argv[1:]).encode() + b'\\0' + data)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    return program


@pytest.mark.parametrize("fps", [7.5, 29.97, 50])
def test_gif_is_as_long_as_it_should_be(tmp_path: Path, fps: float) -> None:
    save_animation(clip(30), tmp_path / "a.gif", fps=fps)
    frames, durations = read(tmp_path / "a.gif")
    assert len(frames) == 30
    assert abs(sum(durations) - 30 * 1000 / fps) <= 5
    assert all(duration >= 20 and abs(duration - 1000 / fps) < 10 for duration in durations)


@pytest.mark.parametrize(("channels", "height", "width", "scale"), [(1, 4, 6, 1), (3, 5, 7, 1), (3, 5, 7, 3)])
def test_ffmpeg_gets_all_pixels_with_even_sides(
    tmp_path: Path, ffmpeg: Path, channels: int, height: int, width: int, scale: int
) -> None:
    frames = clip(3, channels, height, width)
    path = tmp_path / "new folder; $(x)" / "a b.mp4"
    save_animation(frames, path, fps=7.5, scale=scale)
    text, _, data = path.read_bytes().partition(b"\0")
    arguments = text.decode().split("\n")
    h, w = (height * scale + 1) // 2 * 2, (width * scale + 1) // 2 * 2
    assert arguments[arguments.index("-video_size") + 1] == f"{w}x{h}"
    assert arguments[arguments.index("-framerate") + 1] == "7.5"
    assert Path(arguments[-1]).is_absolute()
    sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(3, h, w, 3).permute(0, 3, 1, 2)
    wanted = enlarged(frames, scale).float()
    wanted = torch.nn.functional.pad(wanted, (0, w - wanted.shape[3], 0, h - wanted.shape[2]), mode="replicate")
    assert torch.equal(sent, wanted.to(torch.uint8))
    assert [file.name for file in path.parent.iterdir()] == ["a b.mp4"]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_mp4_by_the_ffmpeg_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    package = import_or_skip("imageio_ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path))
    path, frames = tmp_path / "a.mp4", clip(5, channels, 15, 16)
    save_animation(frames, path, fps=8, scale=2, bounce=True)
    program, raw = package.get_ffmpeg_exe(), ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([program, "-loglevel", "error", "-i", str(path), *raw], capture_output=True, check=True)
    found = np.frombuffer(done.stdout, np.uint8).reshape(8, 30, 32, 3)  # there and back, the ends once
    wanted = enlarged(frames[[0, 1, 2, 3, 4, 3, 2, 1]], 2).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(float) - wanted).mean() < (3 if channels == 1 else 40)  # random colours are halved


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("sys.stdin.buffer.read(); print('one\\nthe cause\\n', file=sys.stderr); sys.exit(1)", "the cause"),
        ("sys.exit(3)", "exit status 3"),  # the pipe breaks
    ],
)
def test_ffmpeg_fails_or_is_not_there(
    tmp_path: Path, ffmpeg: Path, monkeypatch: pytest.MonkeyPatch, lines: str, reason: str
) -> None:
    ffmpeg.write_text(f"#!{sys.executable}\nimport sys\n{lines}\n")
    (tmp_path / "a.mp4").write_bytes(b"older")
    with pytest.raises(SphereGenError, match=reason) as caught:
        save_animation(clip(50, 3, 64, 64), tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "bin"]
    assert (tmp_path / "a.mp4").read_bytes() == b"older"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SphereGenError, match="install"):
        save_animation(clip(), tmp_path / "a.mp4")
