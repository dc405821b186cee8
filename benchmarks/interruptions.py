"""Kill training, encoding and evaluation at random moments, or let the disk run full, and compare what comes out.

Each job runs once undisturbed. Then it is started over and over: killed by SIGKILL, with its workers, after a random
time (or written to a small disk that is full at a random write) and started again, until one start ends by itself. A
round fails if a start ends with a traceback or another error than the one line about the disk, if it begins before the
last checkpoint that a kill left behind, or if the final files are not those of the undisturbed job to the bit.

    python benchmarks/interruptions.py --kills 20 --full 10

Needs Linux, and for --full the right to mount a tmpfs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPHEREGEN = [sys.executable, "-c", "from spheregen.cli.main import run; run()"]
STEPS = 300
TRAIN = [
    "train",
    "debug",
    "--set",
    f"train.steps={STEPS}",
    "--set",
    "train.checkpoint_every=7",
    "--set",
    "data.workers=2",
]
TRAIN += ["--set", "train.preview_every=20", "--set", "train.log_every=5"]


def jobs(data: Path) -> dict[str, list[str]]:
    """Return the commands, whose output folder is `made` in their working folder."""
    return {
        "train": [*TRAIN, "--out", "made"],
        "encode": ["encode", "digits", str(data), "--out", "made", "--batch-size", "4"],
        "evaluate": ["evaluate", "digits", "--data", "digits", "--report", "made", "-n", "600", "--curve-count", "100"],
    }


def environment() -> dict[str, str]:
    """Return what a command sees: one thread, the network off."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(command: list[str], folder: Path, seconds: float | None = None) -> tuple[int | None, str]:
    """Run a command in a folder; kill it and its workers after some seconds. Return its code (None: killed), stderr."""
    process = subprocess.Popen(
        [*SPHEREGEN, *command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, text = process.communicate(timeout=seconds)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, text = process.communicate()
        return None, text


def result(job: str, made: Path) -> dict[str, str]:
    """Return the digests of the files that a job leaves, without times and dates."""
    if job == "train":
        names = ["model.safetensors", "log.jsonl"]
    elif job == "encode":
        names = sorted(str(path.relative_to(made)) for path in made.rglob("*.safetensors"))
    else:
        names = ["evaluation.json"]
    found = {}
    for name in names:
        content = (made / name).read_bytes()
        if name == "log.jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            kept = [
                {k: v for k, v in row.items() if k in ("step", "loss", "lr") or k.startswith("loss")} for row in rows
            ]
            content = json.dumps(kept).encode()
        if name == "evaluation.json":
            content = json.dumps(timeless(json.loads(content)), sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def timeless(tree: object) -> object:
    """Return a tree of JSON values without what tells time, speed, memory or place."""
    if isinstance(tree, dict):
        told = re.compile(r"second|time|date|speed|latency|memory|ms_per|images_per|version|folder|path|created")
        return {k: timeless(v) for k, v in tree.items() if not told.search(k)}
    return [timeless(each) for each in tree] if isinstance(tree, list) else tree


def last_checkpoint(made: Path) -> int:
    """Return the step of the newest whole checkpoint of a run; -1 if there is none."""
    steps = [int(found.group()) for path in made.glob("state/step-*") if (found := re.search(r"\d+", path.name))]
    return max(steps, default=-1)


def clean(text: str) -> bool:
    """Return whether stderr shows no traceback."""
    return "Traceback" not in text


def killed(
    job: str, command: list[str], wanted: dict[str, str], usual: float, chance: random.Random, kills: int
) -> list[str]:
    """Kill a job so often, then let it end; return what was wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for _ in range(kills):
            before = last_checkpoint(folder / "made")
            code, text = start(command, folder, chance.uniform(0.15, 1.0) * usual)
            if code not in (None, 0) or not clean(text):
                wrong.append(f"a start ended with {code}: {text[-300:]}")
            if last_checkpoint(folder / "made") < before:
                wrong.append(f"checkpoint {before} is gone")
        code, text = start(command, folder)
        if code != 0:
            return [*wrong, f"the last start ended with {code}: {text[-300:]}"]
        found = result(job, folder / "made")
        wrong += [f"{name} differs" for name in wanted if found.get(name) != wanted[name]]
    return wrong


def full_disk(job: str, command: list[str], wanted: dict[str, str], size: int, chance: random.Random) -> list[str]:
    """Let a job run into a full disk, make room, and let it end; return what was wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as place:
        disk = Path(place)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * size + 2**22}", "none", place], check=True)
        try:
            filler, left = disk / "filler", int(chance.uniform(0.02, 0.95) * size)
            free = shutil.disk_usage(disk).free
            filler.write_bytes(bytes(max(0, free - left)))
            code, text = start(command, disk)
            if not clean(text) or code not in (0, 2):
                wrong.append(f"a full disk ended it with {code}: {text[-300:]}")
            filler.unlink()
            code, text = start(command, disk)
            if code != 0:
                return [*wrong, f"with room again it ended with {code}: {text[-300:]}"]
            found = result(job, disk / "made")
            wrong += [f"{name} differs" for name in wanted if found.get(name) != wanted[name]]
        finally:
            subprocess.run(["umount", place], check=True)
    return wrong


def main() -> int:
    """Run the rounds; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full", type=int, default=10, help="rounds with a full disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default="train,encode,evaluate")
    arguments = parser.parse_args()
    chance, bad = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        code, text = start(["sample", "digits", "-n", "400", "--steps", "1", "--out", str(data), "-q"], Path(place))
        assert code == 0, text
        chosen = {name: command for name, command in jobs(data).items() if name in arguments.jobs.split(",")}
        for number, (job, command) in enumerate(chosen.items()):
            folder = Path(place) / job
            folder.mkdir()
            begun = time.monotonic()
            code, text = start(command, folder)
            usual = time.monotonic() - begun
            assert code == 0, text
            wanted = result(job, folder / "made")
            size = sum(path.stat().st_size for path in (folder / "made").rglob("*") if path.is_file())
            print(f"{job}: {usual:.0f} s, {size / 2**20:.1f} MiB, {len(wanted)} files compared", flush=True)
            first = number == 0
            kills_left = arguments.kills // len(chosen) + first * (arguments.kills % len(chosen))
            while kills_left > 0:
                kills = min(kills_left, chance.randint(1, 4))
                kills_left -= kills
                wrong = killed(job, command, wanted, usual, chance, kills)
                bad += len(wrong) > 0
                print(f"  {kills} kills: {'; '.join(wrong) or 'the same to the bit'}", flush=True)
            for _ in range(arguments.full // len(chosen) + first * (arguments.full % len(chosen))):
                wrong = full_disk(job, command, wanted, size, chance)
                bad += len(wrong) > 0
                print(f"  full disk: {'; '.join(wrong) or 'the same to the bit'}", flush=True)
    print("all hold" if not bad else f"{bad} rounds failed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
