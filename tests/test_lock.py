"""A folder belongs to one process, or one group of them, while it is written; what a dead one left is taken over."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spheregen.errors import SphereGenError
from spheregen.lock import LOCK, locked_folder
from tests.processes import Started, command, world
from tests.training.runs import wait_for_a_checkpoint

QUICK = ("--set", "train.log_every=1000", "--set", "train.preview_every=0", "--device", "cpu", "-q")


def hold(folder: str) -> None:
    with locked_folder(Path(folder)):
        Path(folder, "ready").touch()
        while not Path(folder, "stop").exists():
            time.sleep(0.01)


def join_and_hold(folder: str) -> None:
    from spheregen.distributed import joined_world

    with joined_world("cpu") as here, locked_folder(Path(folder), here):
        Path(folder, f"rank-{here.rank}").touch()
        here.wait_for_all()


def held(folder: Path) -> Started:
    process = Started(hold, str(folder))
    while not (folder / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_another_process_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    process = held(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SphereGenError, match=f"in use by process {process.pid}"), locked_folder(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "stop").touch()
    assert process.finish()[0] == 0
    with locked_folder(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_what_a_killed_process_left_is_taken_over_at_once(tmp_path: Path) -> None:
    process = held(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert (tmp_path / LOCK).exists()
    begun = time.monotonic()
    with locked_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert time.monotonic() - begun < 1


def test_one_thread_may_hold_it_twice_and_another_may_not(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with locked_folder(tmp_path):
                found.append("held")
        except SphereGenError as error:
            found.append(str(error))

    with locked_folder(tmp_path):
        with locked_folder(tmp_path / ".." / tmp_path.name):
            pass
        assert (tmp_path / LOCK).exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread" in found[0]


@pytest.mark.parametrize("age", [5, 3600])
def test_another_machine_is_never_overrun(age: int, tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"host": "node7", "machine": "other", "pid": 12, "started": "1"}))
    os.utime(lock, (time.time() - age,) * 2)
    with pytest.raises(SphereGenError, match="node7") as caught, locked_folder(tmp_path):
        pass
    assert (f"remove {lock}" in str(caught.value)) is (age > 1000)
    assert "node7" in lock.read_text()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_lock_without_an_owner_is_waited_for_and_taken_over(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    with locked_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_storage_without_locks_asks_for_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = held(tmp_path)
    monkeypatch.setattr("spheregen.lock._system_lock", lambda handle: None)
    with pytest.raises(SphereGenError, match="in use"), locked_folder(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.finish()
    with locked_folder(tmp_path):
        pass


def test_folders_are_made_and_empty_ones_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with locked_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_the_processes_of_one_world_are_one_owner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for process in world(2, join_and_hold, str(folder)):
        code, _, err = process.finish()
        assert code == 0, err
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0", "rank-1"]
    process = held(folder)
    for each in world(2, join_and_hold, str(folder)):
        code, _, err = each.finish()
        assert code == 1 and "in use by process" in err
    process.send_signal(signal.SIGKILL)
    process.finish()


def test_a_second_training_is_refused_and_reading_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ("train", "debug", *QUICK, "--set", "train.checkpoint_every=20")
    first = Started(command, [*train, "--set", "train.steps=100000", "--out", "run"])
    wait_for_a_checkpoint(Path("run"), first)
    while not Path("run/config.json").exists():
        time.sleep(0.01)
    second = Started(command, [*train, "--set", "train.seed=1", "--out", "run"])
    code, _, err = second.finish()
    assert code == 2 and "in use by process" in err and "Traceback" not in err
    assert json.loads(Path("run/recipe.json").read_text())["train"]["seed"] == 0
    sampled = Started(command, ["sample", "run", "-n", "2", "--out", "s", "-q", "--device", "cpu"])
    assert sampled.finish()[0] == 0
    first.send_signal(signal.SIGKILL)
    first.finish()
    longer = Started(command, [*train, "--set", "train.steps=100000", "--out", "run"])
    time.sleep(3)
    assert longer.poll() is None  # it goes on at once
    longer.send_signal(signal.SIGTERM)
    assert longer.finish()[0] == 143


WRITES: dict[str, Callable[[str], list[str]]] = {
    "train": lambda out: ["train", "debug", "--set", "train.steps=2", "--out", out],
    "encode": lambda out: ["encode", "digits", "digits", "--out", out],
    "evaluate": lambda out: ["evaluate", "digits", "--data", "digits", "-n", "20", "--report", out],
    "ablate": lambda out: [
        "ablate",
        "debug",
        "--over",
        "loss.w5=0,1",
        "--set",
        "train.steps=2",
        "-n",
        "20",
        "--out",
        out,
    ],
    "demo": lambda out: ["demo", "--set", "train.steps=2", "--out", out],
}


@pytest.mark.parametrize("name", WRITES)
def test_every_command_that_fills_a_folder_holds_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from spheregen.cli.main import run

    process = held(tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    (tmp_path / "file").write_text("precious")
    places = {str(tmp_path / "out"): "in use by", str(tmp_path / "file" / "x"): "file", "/proc/spheregen/run": "/proc"}
    for place, named in places.items():
        with pytest.raises(SystemExit) as ended:
            run([*WRITES[name](place), "-q", "--device", "cpu"])
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and lines[-1].startswith("error: ") and named in lines[-1], lines
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert (tmp_path / "file").read_text() == "precious"
    process.send_signal(signal.SIGKILL)
    process.finish()
