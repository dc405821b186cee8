"""Several processes train as one: the same losses, the same files, and no process waits for a dead one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spheregen.distributed import World, choose_backend, joined_world
from spheregen.errors import ConfigError
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

STEPS = 20
SETTINGS = ("train.steps=20", "train.log_every=1", "train.checkpoint_every=5", "train.preview_every=0")
WIDE = (
    "model.encoder={width: 48, depth: 2, heads: 2}",
    "model.decoder={width: 48, depth: 1, heads: 2}",
    "model.in_context_tokens=0",
)
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from spheregen.cli.main import run
run()
"""
FAILING = """
import os
from spheregen.errors import DataError
from spheregen.training.step import TrainingStep
original = TrainingStep.__call__
def call(self, batch, noise, lr):
    if os.environ["RANK"] == "1" and batch.step == 5:
        raise DataError("photos/7.jpg: the image is empty")
    return original(self, batch, noise, lr)
TrainingStep.__call__ = call
"""


class Processes:
    """The processes of one run, on this machine."""

    def __init__(self, count: int, folder: Path, *settings: str, before: str = "", recipe: str = "debug") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-c",
            before + SCRIPT,
            "train",
            recipe,
            "--out",
            str(folder),
            "--device",
            "cpu",
        ]
        command += [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        # without torchrun, which would end the others itself: they must notice on their own
        self.all = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def finish(self, timeout: float = 150) -> list[tuple[int, str]]:
        """Exit code and messages of each."""
        results = []
        for process in self.all:
            try:
                _, messages = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                for other in self.all:
                    other.kill()
                raise
            results.append((process.returncode, messages))
        return results


def run(count: int, folder: Path, *settings: str) -> Path:
    for rank, (code, messages) in enumerate(Processes(count, folder, *settings).finish()):
        assert code == 0, messages
        assert ("the model is in" in messages) == (rank == 0)  # one of them talks
        assert "Warning" not in messages
    return folder


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    return [entry["loss"] for entry in entries]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state" / f"step-{STEPS:09d}.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(load_recipe("debug", (*SETTINGS, *WIDE)), folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in two processes."""
    return run(2, tmp_path_factory.mktemp("pair") / "run", *WIDE)


def wait_for_a_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("state/step-*.safetensors")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.002)


def assert_same_files(a: Path, b: Path) -> None:
    assert sorted(path.relative_to(a) for path in a.rglob("*")) == sorted(path.relative_to(b) for path in b.rglob("*"))
    first, second = state(a), state(b)
    assert {name: (t.shape, t.dtype) for name, t in first.items()} == {
        name: (t.shape, t.dtype) for name, t in second.items()
    }


def test_two_processes_train_as_one(alone: Path, pair: Path) -> None:
    assert losses(pair) == pytest.approx(losses(alone), abs=1e-4)
    assert_same_files(alone, pair)
    statistics = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (alone, pair)
    ]
    for ours, theirs in zip(*statistics, strict=True):  # global statistics, not those of one process
        assert ours.keys() == theirs.keys()
        for name in ("latent_coverage", "image_deviation", "data_deviation", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_processes_train_as_one(alone: Path, tmp_path: Path, optimizer: str) -> None:
    settings = (*WIDE, f"optimizer.name={optimizer}")
    sharded = run(2, tmp_path / "sharded", *settings, "train.parallel=fsdp", "train.preview_every=20")
    reference = alone
    if optimizer != "adamw":
        reference = tmp_path / "alone"
        train(load_recipe("debug", (*SETTINGS, *settings)), reference, device="cpu")
    assert losses(sharded) == pytest.approx(losses(reference), abs=1e-4)
    assert (sharded / "previews" / f"step-{STEPS:09d}.png").is_file()
    first, second = state(sharded), state(reference)
    assert {name: (t.shape, t.dtype) for name, t in first.items()} == {
        name: (t.shape, t.dtype) for name, t in second.items()
    }


def test_a_sharded_run_continues_to_the_bit(tmp_path: Path) -> None:
    settings = (*WIDE, "train.parallel=fsdp")
    whole = run(2, tmp_path / "whole", *settings)
    folder = tmp_path / "run"
    processes = Processes(2, folder, *settings)
    wait_for_a_checkpoint(folder)
    processes.all[1].send_signal(signal.SIGTERM)
    assert {code for code, _ in processes.finish()} in ({143}, {0})
    run(2, folder, *settings)
    assert all(torch.equal(a, b) for a, b in zip(state(folder).values(), state(whole).values(), strict=True))


def test_micro_batches_and_recomputing_change_nothing_in_two_processes(alone: Path, tmp_path: Path) -> None:
    split = run(2, tmp_path / "split", *WIDE, "train.micro_batch=3", "train.recompute=true")
    assert losses(split) == pytest.approx(losses(alone), abs=1e-4)


def test_a_killed_process_ends_the_others_and_the_run_goes_on_exactly(alone: Path, pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = Processes(2, folder, *WIDE)
    wait_for_a_checkpoint(folder)
    processes.all[1].send_signal(signal.SIGKILL)
    (code, messages), _ = processes.finish(timeout=60)
    if not (folder / "state" / f"step-{STEPS:09d}.safetensors").exists():  # else it was too quick to be killed
        assert code == 2
        assert "another process of this run died" in messages
    continued = tmp_path / "continued"
    subprocess.run(["cp", "-r", str(folder), str(continued)], check=True)
    run(2, folder, *WIDE)
    ours, theirs = state(folder), state(pair)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(folder) == losses(pair)
    train(load_recipe("debug", (*SETTINGS, *WIDE)), continued, device="cpu")  # one process goes on
    assert losses(continued) == pytest.approx(losses(alone), abs=1e-4)


def test_three_processes_continue_to_the_bit(tmp_path: Path) -> None:
    settings = (*WIDE, "train.batch_size=15")
    whole = run(3, tmp_path / "whole", *settings)
    folder = tmp_path / "run"
    processes = Processes(3, folder, *settings)
    wait_for_a_checkpoint(folder)
    processes.all[0].send_signal(signal.SIGTERM)
    codes = [code for code, _ in processes.finish(timeout=60)]
    assert codes in ([143, 143, 143], [0, 0, 0])  # one asked to stop: all save and stop; or the run was quicker
    run(3, folder, *settings)
    assert all(torch.equal(a, b) for a, b in zip(state(folder).values(), state(whole).values(), strict=True))


def test_an_error_of_one_process_reaches_the_others(tmp_path: Path) -> None:
    (first, told), (second, own) = Processes(2, tmp_path / "run", *WIDE, before=FAILING).finish(timeout=60)
    assert first == second == 2
    assert "error: photos/7.jpg: the image is empty" in own
    assert "error: stopped because another process failed: process 1: photos/7.jpg: the image is empty" in told


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    odd = Processes(2, tmp_path / "odd", *WIDE, "train.batch_size=15").finish(timeout=60)
    assert {code for code, _ in odd} == {2}
    assert any("multiple of" in messages for _, messages in odd)


def test_one_process_is_a_world_of_its_own() -> None:
    with joined_world("cpu") as world:
        assert world == World() and world.is_first
        assert world.share(5) == slice(0, 5)
        values = torch.arange(3.0)
        assert world.mean(values) is values and world.gather(values) is values
        assert world.gather_objects("x") == ["x"]
        world.wait_for_all()
    assert [World(rank, 3).share(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(ConfigError, match="cannot be shared equally by 3"):
        World(0, 3).share(10)
    with pytest.raises(ConfigError, match="nccl needs NVIDIA"):
        choose_backend("nccl", on_gpu=False)
    assert choose_backend("auto", on_gpu=False) == "gloo"
