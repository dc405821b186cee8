"""Feed the commands hostile files, and say what none of them may do.

Every case is a file or a folder that a seed makes: valid pictures, archives, tables, weights, configurations and
recipes with flipped, cut, doubled or exchanged bytes, and by hand what is known to hurt (bombs, links, paths that
climb, sizes without end). It goes through a command in a process of its own. A case fails if the command shows a
traceback, ends with another code than 0 or 2, takes longer than 30 s or more than 2 GiB, or writes a file outside of
its --out.

    python benchmarks/soak.py --cases 2000 --seed 0 --keep /tmp/soak
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save

from spheregen.cli.main import run as run_command

SECONDS, GIB = 30.0, 2.0
HERE = Path(__file__).resolve().parent.parent
DIGITS = HERE / "src/spheregen/assets/models/digits"
FORMATS = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "webp": "WEBP", "gif": "GIF"}
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefg", "bcdefgh", strict=True)
)
TINY = ("--set", "train.steps=2", "--set", "sampling.guidance=1", "-q")


def picture(chance: random.Random, kind: str, size: int = 24) -> bytes:
    """Return a valid picture of random colours and a random mode."""
    mode = chance.choice(("RGB", "L", "RGBA", "P") if kind in ("png", "tiff", "gif") else ("RGB", "L"))
    pixels = np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).convert("RGB" if kind in ("jpeg", "webp") else mode).save(file, FORMATS[kind])
    return file.getvalue()


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return the bytes with one to four wounds."""
    wounded = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(wounded) or 1), chance.choice((1, 2, 4, 16, 64, 500))
        match chance.randrange(8):
            case 0:
                wounded[at : at + 1] = bytes([wounded[at] ^ 1 << chance.randrange(8)]) if wounded else b""
            case 1:
                del wounded[at:]
            case 2:
                wounded[at : at + length] = chance.randbytes(length)
            case 3:
                wounded[at:at] = wounded[: chance.randrange(len(wounded) or 1)]
            case 4:
                wounded[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
            case 5:
                del wounded[at : at + length]
            case 6:
                early = chance.randrange(min(len(wounded), 64) or 1)  # headers
                wounded[early : early + 2] = chance.randbytes(2)
            case 7:
                wounded += chance.randbytes(length)
    return bytes(wounded)


def png_of(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG that says that it has this size, whatever its data holds."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    middle = b"".join(chunk(*each) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def crafted_pictures(chance: random.Random) -> dict[str, bytes]:
    """Return pictures that are made to hurt."""
    gif = io.BytesIO()
    frames = [Image.new("P", (8, 8), k % 255) for k in range(200)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    tiff = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tiff, "TIFF")
    return {
        "bomb.png": png_of(40_000, 40_000, zlib.compress(bytes(3_000_000))),
        "wide.png": png_of(2**31 - 1, 1, zlib.compress(b"\0" * 100)),
        "none.png": png_of(0, 0, b""),
        "text.png": png_of(8, 8, zlib.compress(b"\0" * 200), (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
        "frames.gif": gif.getvalue(),
        "nan.tif": tiff.getvalue(),
        "thin.png": png_of(1, 60_000, zlib.compress(b"\0\1\2\3" * 60_000)),
        "script.png": b"#!/bin/sh\ntouch owned\n",
        "empty.jpg": b"",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "post.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file closefile\n",
    }


def image_folder(chance: random.Random, root: Path) -> Path:
    """Make a folder of good pictures and hostile ones, sometimes in classes."""
    source = root / "data"
    names = chance.choice(
        (("",), ("a", "b"), ("", "a"), ("train", "valid"), ("ü", "u\u0308"), ("-rf", "a;b"), ("1", "10"))
    )
    for name in names:
        (source / name).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            (source / name / f"{k}.png").write_bytes(picture(chance, "png"))
    place = source / chance.choice(names)
    for k in range(chance.randint(1, 3)):
        if chance.random() < 0.25:
            name, data = chance.choice(list(crafted_pictures(chance).items()))
        else:
            kind = chance.choice(list(FORMATS))
            name, data = f"x{k}.{kind}", mutated(chance, picture(chance, kind))
        (place / name).write_bytes(data)
    if chance.random() < 0.2:
        table = chance.choice(("metadata.csv", "metadata.jsonl", "dataset.json", "labels.csv"))
        good = {
            "metadata.csv": b"file_name,label\n0.png,a\n1.png,b\n../../etc/passwd,c\n",
            "metadata.jsonl": b'{"file_name": "0.png", "label": 1}\n{"file_name": "/etc/passwd"}\n',
            "dataset.json": b'{"labels": [["0.png", 0], ["1.png", 1]]}',
            "labels.csv": b"a;b\n",
        }[table]
        (source / table).write_bytes(mutated(chance, good) if chance.random() < 0.6 else good)
    if chance.random() < 0.1:
        (source / "loop").symlink_to(source)
        (source / "gone.png").symlink_to("/nowhere/at/all.png")
    return source


def archive(chance: random.Random, root: Path) -> Path:
    """Make a tar or zip with pictures, entries that climb, links, devices and bombs; then sometimes wound it."""
    kind = chance.choice(("zip", "tar", "tgz"))
    path, data = root / f"data.{kind}", io.BytesIO()
    entries = [(f"{c}/{k}.png", picture(chance, "png")) for c in "ab" for k in range(2)]
    entries.append(
        (chance.choice(("../../escaped.png", "/tmp/escaped.png", "a/b\\c.png", "a/\udce9.png")), picture(chance, "png"))
    )
    if chance.random() < 0.3:
        entries.append(chance.choice(list(crafted_pictures(chance).items())))
    if kind == "zip":
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in entries:
                file.writestr(name.encode("utf-8", "replace").decode(), content)
            if chance.random() < 0.2:
                file.writestr("a/bomb.png", bytes(300_000_000), compresslevel=1)
    else:
        with tarfile.open(fileobj=data, mode="w:gz" if kind == "tgz" else "w") as file:
            for name, content in entries:
                info = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            for type_, target in (
                (tarfile.SYMTYPE, "/etc/passwd"),
                (tarfile.LNKTYPE, "a/0.png"),
                (tarfile.CHRTYPE, ""),
            ):
                info = tarfile.TarInfo(f"a/link{type_.decode()}.png")
                info.type, info.linkname = type_, target
                file.addfile(info)
    content = data.getvalue()
    path.write_bytes(mutated(chance, content) if chance.random() < 0.6 else content)
    return path


def table(chance: random.Random, root: Path) -> Path:
    """Make a parquet file with pictures and labels of a random kind, sometimes wounded."""
    count = 6
    labels: Any = chance.choice(
        (
            [0, 1] * 3,
            ["a", "b"] * 3,
            [None] * count,
            [0.5] * count,
            [-1] * count,
            [2**62] * count,
            [[1]] * count,
            [b"x"] * count,
        )
    )
    pictures: Any = [{"bytes": picture(chance, "png"), "path": "../x"} for _ in range(count)]
    if chance.random() < 0.3:
        pictures = chance.choice(
            ([None] * count, ["/etc/passwd"] * count, [{"bytes": None, "path": "/etc/passwd"}] * count)
        )
    columns = {
        chance.choice(("image", "img", "jpg")): pictures,
        chance.choice(("label", "labels", "class", "cls")): labels,
    }
    data = io.BytesIO()
    made = pa.table(columns)
    if chance.random() < 0.3:
        made = made.replace_schema_metadata(
            {b"huggingface": mutated(chance, b'{"info":{"features":{"label":{"names":["a","b"]}}}}')}
        )
    pq.write_table(made, data)
    path = root / "data.parquet"
    path.write_bytes(mutated(chance, data.getvalue()) if chance.random() < 0.6 else data.getvalue())
    return path


def weights(chance: random.Random, path: Path) -> None:
    """Wound the tensors of a model folder or write ones that lie."""
    tensors = load_file(path)
    name = chance.choice(sorted(tensors))
    match chance.randrange(7):
        case 0:
            tensors[name] = tensors[name] * float(chance.choice(("nan", "inf", "1e30")))
        case 1:
            del tensors[name]
        case 2:
            tensors[name] = torch.zeros(chance.choice(((0,), (3, 5), (1,) * 9)))
        case 3:
            tensors[name] = tensors[name].to(chance.choice((torch.int64, torch.bool, torch.float64, torch.float16)))
        case 4:
            path.write_bytes(struct.pack("<Q", chance.choice((2**63, 2**40, 0, 7))) + path.read_bytes()[8:])
            return
        case 5:
            head = json.dumps({name: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
            path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(64))
            return
        case _:
            path.write_bytes(mutated(chance, path.read_bytes()))
            return
    path.write_bytes(save(tensors))


def hurt_value(chance: random.Random) -> Any:
    """Return a value that no setting expects."""
    return chance.choice(
        (
            None,
            -1,
            0,
            10**9,
            10**30,
            1e308,
            float("nan"),
            "",
            "../../x",
            "\0",
            [],
            {},
            [[]] * 50,
            True,
            "a" * 10_000,
            -0.5,
        )
    )


def tree_hurt(chance: random.Random, tree: Any) -> Any:
    """Replace, drop or add one value somewhere in a tree of JSON values."""
    place = tree
    while isinstance(place, dict) and place:
        key = chance.choice(sorted(place))
        if not isinstance(place[key], dict) or chance.random() < 0.3:
            match chance.randrange(3):
                case 0:
                    place[key] = hurt_value(chance)
                case 1:
                    del place[key]
                case 2:
                    place[f"{key}x"] = place[key]
            break
        place = place[key]
    return tree


def model_folder(chance: random.Random, root: Path, hurt: str) -> Path:
    """Make a copy of the bundled digits with hostile weights or configuration."""
    folder = root / "model"
    shutil.copytree(DIGITS, folder)
    for each in folder.rglob("*"):
        each.chmod(0o755 if each.is_dir() else 0o644)
    if hurt == "weights":
        weights(chance, folder / "model.safetensors")
        return folder
    path = folder / "config.json"
    text = json.dumps(tree_hurt(chance, json.loads(path.read_text())))
    match chance.randrange(6):
        case 0:
            text = mutated(chance, text.encode()).decode("latin-1")
        case 1:
            text = chance.choice(("[" * 100_000, "{}", "null", "", "\ufeff" + text, '{"a":1,"a":2}'))
    path.write_text(text, encoding="utf-8")
    return folder


def recipe(chance: random.Random, root: Path) -> Path:
    """Make a hostile recipe."""
    import yaml

    text = (HERE / "src/spheregen/recipes/debug.yaml").read_text()
    match chance.randrange(5):
        case 0:
            text = mutated(chance, text.encode()).decode("latin-1")
        case 1:
            text = chance.choice(
                (
                    LAUGHS,
                    "!!python/object/apply:os.system ['touch owned']\n",
                    text + text,
                    "[" * 5000,
                    "kind: autoencoder\nmodel: &m {x: *m}\n",
                    "data: /etc/passwd\n" + text,
                    "\t" + text,
                )
            )
        case _:
            text = yaml.safe_dump(tree_hurt(chance, yaml.safe_load(text)))
    path = root / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def checkpoint(chance: random.Random, root: Path) -> tuple[Path, Path]:
    """Make a file of weights that is no checkpoint, or a wounded one, and its settings."""
    path, settings = root / "ep.pth", root / "cfg.json"
    data = io.BytesIO()

    class Owned:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, ("touch owned",)

    content: Any = chance.choice(
        (
            Owned(),
            {"model": Owned()},
            {},
            [1],
            {"model": {"a": torch.zeros(3)}},
            {"encoder.x": torch.zeros(2, 2)},
            torch.zeros(1),
        )
    )
    torch.save(content, data)
    path.write_bytes(mutated(chance, data.getvalue()) if chance.random() < 0.4 else data.getvalue())
    settings.write_text(json.dumps(tree_hurt(chance, {"image_size": 32, "patch_size": 2, "model": {"depth": 2}})))
    return path, settings


def case(chance: random.Random, root: Path) -> tuple[str, list[str]]:
    """Make the files of a case in `root`; return its kind and a command, all of whose output goes to `root/out`."""
    out = str(root / "out" / "made")
    kind = chance.choice(
        ("images", "images", "images", "archive", "table", "weights", "config", "recipe", "convert", "one")
    )
    if kind in ("images", "archive", "table"):
        source = str({"images": image_folder, "archive": archive, "table": table}[kind](chance, root))
        commands = [
            ["stats", source, *chance.choice(([], ["--json"]))],
            [
                "train",
                "debug",
                "--data",
                source,
                "--set",
                f"model.num_classes={chance.choice((0, 2))}",
                *TINY,
                "--out",
                out,
            ],
            ["suggest", source],
        ]
        if kind == "images":
            commands.append(["evaluate", "--images", source, "--data", source, "--count", "8", "--metrics", "fd", "-q"])
            commands.append(["reconstruct", "digits", source, "--out", out])
        return kind, chance.choice(commands)
    if kind == "one":
        form = chance.choice(list(FORMATS))
        path = root / f"photo.{form}"
        hostile = list(crafted_pictures(chance).values())
        path.write_bytes(chance.choice(hostile) if chance.random() < 0.3 else mutated(chance, picture(chance, form)))
        verb = chance.choice(("vary", "edit", "reconstruct", "upscale"))
        return kind, [verb, "digits", str(path), *(["--label", "3"] if verb == "edit" else []), "--out", out]
    if kind in ("weights", "config"):
        folder = str(model_folder(chance, root, kind))
        return kind, chance.choice(
            (
                ["sample", folder, "-n", "2", "--steps", "2", "--out", out],
                ["info", folder],
                ["evaluate", folder, "--count", "8", "-q"],
            )
        )
    if kind == "recipe":
        return kind, ["train", str(recipe(chance, root)), *TINY, "--out", out, *chance.choice(([], ["--dry-run"]))]
    path, settings = checkpoint(chance, root)
    return kind, ["convert", "sphere-encoder", "--weights", str(path), "--config", str(settings), "--out", out]


def outside(root: Path) -> set[str]:
    """List what lies in a case's folder, but not below `out`, `home` and `tmp`."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] not in ("out", "home", "tmp")
    }


def child(arguments: list[str], root: Path) -> None:
    """Run a command as if it had been started in `root`; never returns."""
    os.setsid()
    os.chdir(root)
    os.environ.update(HOME=str(root / "home"), TMPDIR=str(root / "tmp"), XDG_CACHE_HOME=str(root / "home"))
    tempfile.tempdir = None
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(root / "out" / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["spheregen", *arguments]
    code = 0
    try:
        run_command()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def judge(arguments: list[str], root: Path) -> Iterator[str]:
    """Run a case and yield what is wrong with it."""
    for name in ("out", "home", "tmp"):
        (root / name).mkdir()
    before, start, most = outside(root), time.monotonic(), 0.0
    pid = os.fork()
    if pid == 0:
        child(arguments, root)
    status: int | None = None
    while status is None:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = code
            break
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            most = max(most, pages * os.sysconf("SC_PAGE_SIZE") / 2**30)
        except (OSError, IndexError):
            pass
        if time.monotonic() - start > 4 * SECONDS or most > 2 * GIB:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    took = time.monotonic() - start
    text = "".join((root / "out" / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    code = os.waitstatus_to_exitcode(status)
    if "Traceback" in text:
        yield "traceback"
    if code not in (0, 2):
        yield f"exit code {code}"
    if code == 2 and len((root / "out" / "stderr").read_text(errors="replace").strip()) == 0:
        yield "exit code 2 without a word"
    if took > SECONDS:
        yield f"{took:.0f} s"
    if most > GIB:
        yield f"{most:.1f} GiB"
    if stray := outside(root) - before:
        yield f"files outside of --out: {sorted(stray)[:3]}"
    if left := [str(path) for path in (root / "tmp").iterdir() if "torchinductor" not in path.name]:
        yield f"temporary files left: {left[:2]}"


def main() -> int:
    """Run the cases; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of cases that fail")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    failed = 0
    for number in range(arguments.first, arguments.first + arguments.cases):
        chance = random.Random(f"{arguments.seed}-{number}")
        with tempfile.TemporaryDirectory(prefix="soak-") as place:
            root = Path(place)
            kind, command = case(chance, root)
            wrong = list(judge(command, root))
            counts[f"{kind} {command[0]}"] += 1
            if wrong:
                failed += 1
                print(f"case {number}: {kind}: {' '.join(command)[:160]}: {'; '.join(wrong)}", flush=True)
                if arguments.keep is not None:
                    shutil.copytree(root, arguments.keep / str(number), symlinks=True, dirs_exist_ok=True)
    for name, count in sorted(counts.items()):
        print(f"{count:5d} {name}")
    print(f"{arguments.cases - failed} of {arguments.cases} cases hold")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
