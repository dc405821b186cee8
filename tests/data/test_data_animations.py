"""Frames as GIF, MP4 and strip."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from spheregen.data import image_grid, read_metadata, save_animation, save_gif, save_mp4, save_strip, to_uint8
from spheregen.errors import ConfigError, SphereGenError


def clip(count: int = 5, channels: int = 3, height: int = 6, width: int = 8) -> torch.Tensor:
    """Frames of random colours, all different."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def read_gif(path: Path) -> tuple[torch.Tensor, list[int]]:
    """Frames (T, 3, H, W) uint8 and durations in milliseconds."""
    with Image.open(path) as image:
        frames = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    return torch.from_numpy(np.stack([pixels for pixels, _ in frames])).permute(0, 3, 1, 2), [d for _, d in frames]


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ffmpeg that stores its arguments and input in the file that it should write; the folder of the clips."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "data = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'wb').write('\\n'.join(sys.argv[1:]).encode() + b'\\0' + data)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return tmp_path / "clips"


def failing_ffmpeg(folder: Path, lines: str) -> None:
    (folder.parent / "bin" / "ffmpeg").write_text(f"#!{sys.executable}\nimport sys\n{lines}\n")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_gif_of_few_colours_is_exact(tmp_path: Path, channels: int, scale: int) -> None:
    frames = clip(channels=channels)  # 48 colours a frame
    save_gif(frames, tmp_path / "a.gif", scale=scale)
    read, _ = read_gif(tmp_path / "a.gif")
    expected = frames.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert torch.equal(read, expected)


def test_gif_of_many_colours_is_close(tmp_path: Path) -> None:
    steps = torch.linspace(0, 1, 40)
    picture = torch.stack([steps.expand(40, 40), steps[:, None].expand(40, 40), 1 - steps.expand(40, 40)])
    frames = torch.stack([picture, picture.flip(1), picture.flip(2)])
    save_gif(frames, tmp_path / "a.gif")
    read, _ = read_gif(tmp_path / "a.gif")
    error = (read.float() - to_uint8(frames).float()).square().mean().sqrt()
    assert error < 8  # 1600 colours in 256


@pytest.mark.parametrize("fps", [1, 7.5, 12, 24, 29.97, 40, 50])
def test_gif_is_as_long_as_it_should_be(tmp_path: Path, fps: float) -> None:
    save_gif(clip(30), tmp_path / "a.gif", fps=fps)
    frames, durations = read_gif(tmp_path / "a.gif")
    assert len(frames) == 30
    assert abs(sum(durations) - 30 * 1000 / fps) <= 5
    assert all(duration >= 20 and abs(duration - 1000 / fps) < 10 for duration in durations)


def test_gif_loops_or_not(tmp_path: Path) -> None:
    save_gif(clip(), tmp_path / "a.gif")
    save_gif(clip(), tmp_path / "b.gif", loop=False)
    with Image.open(tmp_path / "a.gif") as a, Image.open(tmp_path / "b.gif") as b:
        assert a.info["loop"] == 0
        assert "loop" not in b.info


@pytest.mark.parametrize(("count", "order"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 1]), (4, [0, 1, 2, 3, 2, 1])])
def test_bounce_goes_there_and_back(tmp_path: Path, fake_ffmpeg: Path, count: int, order: list[int]) -> None:
    frames = clip(count)
    save_animation(frames, tmp_path / "a.gif", bounce=True)
    assert torch.equal(read_gif(tmp_path / "a.gif")[0], frames[order])
    save_animation(frames, fake_ffmpeg / "a.mp4", bounce=True)
    assert (fake_ffmpeg / "a.mp4").read_bytes().endswith(frames[order].permute(0, 2, 3, 1).numpy().tobytes())


def test_floats_and_bytes_are_the_same(tmp_path: Path, fake_ffmpeg: Path) -> None:
    frames = clip()
    for suffix in ("gif", "png", "mp4"):
        save_animation(frames, tmp_path / f"a.{suffix}")
        save_animation(frames / 255, tmp_path / f"b.{suffix}")
        a, b = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        if suffix == "mp4":
            a, b = a.split(b"\0", 1)[1], b.split(b"\0", 1)[1]  # the arguments name different files
        assert a == b


def test_strip_is_one_row(tmp_path: Path) -> None:
    frames = clip(7)
    save_strip(frames, tmp_path / "a.png", scale=2, pad=1, metadata={"seed": "3"})
    save_animation(frames, tmp_path / "b.PNG", scale=2)
    assert read_metadata(tmp_path / "a.png") == {"seed": "3"}
    for name, pad in (("a.png", 1), ("b.PNG", 2)):
        with Image.open(tmp_path / name) as image:
            assert image.size == (7 * (16 + pad) + pad, 12 + 2 * pad)
            assert image.tobytes() == image_grid(frames, columns=7, scale=2, pad=pad).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "scale"), [(4, 6, 1), (5, 6, 1), (4, 7, 1), (5, 7, 1), (5, 7, 2), (5, 7, 3)]
)
def test_ffmpeg_gets_all_pixels_with_even_sides(
    fake_ffmpeg: Path, channels: int, height: int, width: int, scale: int
) -> None:
    frames = clip(3, channels, height, width)
    path = fake_ffmpeg / "new folder; $(x)" / "a b.mp4"
    save_mp4(frames, path, fps=7.5, scale=scale)
    text, _, data = path.read_bytes().partition(b"\0")
    arguments = text.decode().split("\n")
    h, w = (height * scale + 1) // 2 * 2, (width * scale + 1) // 2 * 2
    assert arguments[arguments.index("-video_size") + 1] == f"{w}x{h}"
    assert arguments[arguments.index("-framerate") + 1] == "7.5"
    assert arguments[-3:-1] == ["-f", "mp4"]
    assert Path(arguments[-1]).is_absolute()
    assert Path(arguments[-1]).parent == path.parent
    sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(3, h, w, 3).permute(0, 3, 1, 2)
    wanted = frames.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    wanted = torch.nn.functional.pad(
        wanted.float(), (0, w - wanted.shape[3], 0, h - wanted.shape[2]), mode="replicate"
    ).to(torch.uint8)
    assert torch.equal(sent, wanted)
    assert [file.name for file in path.parent.iterdir()] == ["a b.mp4"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("sys.stdin.buffer.read(); print('one\\nthe cause\\n', file=sys.stderr); sys.exit(1)", "a.mp4: the cause; "),
        ("print('at once', file=sys.stderr); sys.exit(3)", "a.mp4: at once; "),  # the pipe breaks
        ("sys.exit(3)", "a.mp4: exit status 3; "),
        ("sys.stderr.write('x' * 1_000_000 + '\\nend'); sys.exit(1)", "a.mp4: end; "),  # more than a pipe holds
    ],
)
def test_ffmpeg_fails(fake_ffmpeg: Path, lines: str, message: str) -> None:
    failing_ffmpeg(fake_ffmpeg, lines)
    fake_ffmpeg.mkdir()
    (fake_ffmpeg / "a.mp4").write_bytes(b"older")
    with pytest.raises(SphereGenError, match=re.escape(message)) as caught:
        save_mp4(clip(50, 3, 64, 64), fake_ffmpeg / "a.mp4")
    assert "\n" not in str(caught.value)
    assert [(file.name, file.read_bytes()) for file in fake_ffmpeg.iterdir()] == [("a.mp4", b"older")]


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SphereGenError, match=r"install.*\.gif"):
        save_animation(clip(), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg on PATH")
@pytest.mark.parametrize("channels", [1, 3])
def test_real_ffmpeg(tmp_path: Path, channels: int) -> None:
    colours = torch.tensor([0.1, 0.4, 0.9]).repeat(4, 1).add(torch.arange(4)[:, None] / 50)[:, :channels]
    frames = colours[..., None, None].expand(-1, -1, 15, 17)
    save_mp4(frames, tmp_path / "a.mp4", fps=5, scale=2, bounce=True)
    decoded = subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-i", str(tmp_path / "a.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    )
    pixels = torch.frombuffer(bytearray(decoded.stdout), dtype=torch.uint8).reshape(6, 30, 34, 3)
    wanted = to_uint8(colours)[[0, 1, 2, 3, 2, 1]].expand(-1, 3)[:, None, None]
    assert (pixels.int() - wanted.int()).abs().max() <= 6
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".mp4"])
def test_impossible_frames(tmp_path: Path, fake_ffmpeg: Path, suffix: str) -> None:
    for shape in ((0, 3, 4, 4), (2, 2, 4, 4), (3, 4, 4), (2, 3, 0, 4), (1, 2, 3, 4, 4)):
        with pytest.raises(ConfigError, match="shape"):
            save_animation(torch.zeros(shape), tmp_path / f"a{suffix}")
    with pytest.raises(ConfigError, match="scale"):
        save_animation(clip(), tmp_path / f"a{suffix}", scale=0)
    for fps in (0, -1, float("nan"), float("inf")) if suffix != ".png" else ():
        with pytest.raises(ConfigError, match="fps"):
            save_animation(clip(), tmp_path / f"a{suffix}", fps=fps)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_gif_is_not_faster_than_players(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at most 50.*\.mp4"):
        save_gif(clip(), tmp_path / "a.gif", fps=60)


@pytest.mark.parametrize("name", ["a", "a.webm", "a.gif.txt", "gif"])
def test_other_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.gif, \.mp4, or \.png"):
        save_animation(clip(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path: Path, fake_ffmpeg: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for suffix in ("gif", "png", "mp4"):
        with pytest.raises(SphereGenError, match="cannot write"):
            save_animation(clip(), tmp_path / "file" / f"a.{suffix}")
