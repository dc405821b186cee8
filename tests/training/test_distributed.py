"""Several processes train as one: the same losses, the same files, and no process waits for a dead one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from spheregen import distributed
from spheregen.distributed import World, choose_backend, joined_world
from spheregen.errors import ConfigError
from spheregen.folders.model_folder import load_any_model
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.processes import Started, command, world
from tests.training.runs import wait_for_a_checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

STEPS = 10
SETTINGS = ("train.steps=10", "train.log_every=1", "train.checkpoint_every=3", "train.preview_every=0")
WIDE = (
    "model.encoder={width: 48, depth: 2, heads: 2}",
    "model.decoder={width: 48, depth: 1, heads: 2}",
    "model.in_context_tokens=0",
)
PARTS = (*WIDE, "train.micro_batch=3", "train.recompute=true")
SHARDED = (*WIDE, "optimizer.name=muon", "train.parallel=fsdp", "train.preview_every=10")
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


def start(count: int, folder: Path, *settings: str, before: str = "", recipe: str = "debug") -> list[Started]:
    arguments = ["train", recipe, "--out", str(folder), "--device", "cpu"]
    arguments += [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return world(count, command, arguments, before)


def finish(processes: Sequence[Started], **patience: float) -> list[tuple[int, str]]:
    """Exit code and messages of each."""
    return [(code, messages) for code, _, messages in (process.finish(**patience) for process in processes)]


def run(count: int, folder: Path, *settings: str, **options: str) -> Path:
    for rank, (code, messages) in enumerate(finish(start(count, folder, *settings, **options))):
        assert code == 0, messages
        assert ("the model is in" in messages) == (rank == 0)  # one of them talks
        assert "Warning" not in messages or "did not find any unused parameters" in messages  # torch's, in some phases
    return folder


def run_alone(folder: Path, *settings: str, recipe: str = "debug", **options: str) -> Path:
    train(load_recipe(recipe, (*SETTINGS, *settings), **options), folder, device="cpu")
    return folder


def log(folder: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
    return entries


def assert_same_training(a: Path, b: Path, files: Sequence[str] = ("model.safetensors",), **tolerance: float) -> None:
    """The same losses, the same weights up to rounding, and a folder that loads."""
    load_any_model(a)
    assert [entry["loss"] for entry in log(a)] == pytest.approx([entry["loss"] for entry in log(b)], abs=2e-4)
    for file in files:
        ours, theirs = load_file(a / file), load_file(b / file)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], **{"atol": 2e-3, "rtol": 2e-3, **tolerance})


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state" / f"step-{STEPS:09d}.safetensors")


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process and in one piece."""
    return run_alone(tmp_path_factory.mktemp("alone") / "run", *WIDE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in two processes, in micro-batches and with recomputing."""
    return run(2, tmp_path_factory.mktemp("pair") / "run", *PARTS)


def test_two_processes_train_as_one(alone: Path, pair: Path) -> None:
    assert_same_training(pair, alone)
    assert sorted(path.relative_to(alone) for path in alone.rglob("*")) == sorted(
        path.relative_to(pair) for path in pair.rglob("*")
    )
    for ours, theirs in zip(log(pair), log(alone), strict=True):  # global statistics, not those of one process
        assert ours.keys() == theirs.keys()
        for name in ("latent_coverage", "image_deviation", "data_deviation", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_a_killed_process_ends_the_others_and_the_run_goes_on_exactly(alone: Path, pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start(2, folder, *PARTS)
    wait_for_a_checkpoint(folder, processes[0])
    processes[1].send_signal(signal.SIGKILL)
    (code, messages), _ = finish(processes)
    if not (folder / "state" / f"step-{STEPS:09d}.safetensors").exists():  # else it was too quick to be killed
        assert code == 2
        assert "another process of this run died" in messages
    continued = shutil.copytree(folder, tmp_path / "continued")
    run(2, folder, *PARTS)
    assert_same_bits(folder, pair)
    assert [entry["loss"] for entry in log(folder)] == [entry["loss"] for entry in log(pair)]
    assert_same_training(run_alone(continued, *PARTS), alone)  # one process goes on


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that share the model, by Muon."""
    return run(2, tmp_path_factory.mktemp("sharded") / "run", *SHARDED)


def test_sharded_processes_train_as_one(sharded: Path, tmp_path: Path) -> None:
    alone = run_alone(tmp_path / "alone", *SHARDED)
    assert_same_training(sharded, alone, files=())  # Muon's orthogonalisation makes large of small differences
    assert (sharded / "previews" / f"step-{STEPS:09d}.png").is_file()
    assert {name: (t.shape, t.dtype) for name, t in state(sharded).items()} == {
        name: (t.shape, t.dtype) for name, t in state(alone).items()
    }


def test_a_sharded_run_continues_to_the_bit(sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = start(2, folder, *SHARDED)
    wait_for_a_checkpoint(folder, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert {code for code, _ in finish(processes)} in ({143}, {0})  # one asked to stop: all save and stop
    run(2, folder, *SHARDED)
    assert_same_bits(folder, sharded)


def test_three_processes_continue_to_the_bit(tmp_path: Path) -> None:
    """With more than two, the order of the gradients' exchange decides rounding."""
    settings = (*WIDE, "train.batch_size=15", "train.keep=9")
    whole = run(3, tmp_path / "whole", *settings)
    folder = shutil.copytree(whole, tmp_path / "run")
    for step in (9, 10):
        (folder / "state" / f"step-{step:09d}.safetensors").unlink()
    run(3, folder, *settings)
    assert_same_bits(folder, whole)


def test_an_error_of_one_process_reaches_the_others(tmp_path: Path) -> None:
    (first, told), (second, own) = finish(start(2, tmp_path / "run", *WIDE, before=FAILING))
    assert first == second == 2
    assert "error: photos/7.jpg: the image is empty" in own
    assert "error: stopped because another process failed: process 1: photos/7.jpg: the image is empty" in told


def test_two_processes_share_what_they_measure_of_the_data(tmp_path: Path) -> None:
    """The normaliser of a tokenizer, in the game of its critic."""
    game = ("loss.adversarial=0.3", "loss.adversarial_start=0.5", "loss.critic_lead=0.2", "loss.critic_width=4")
    alone = run_alone(tmp_path / "alone", *game, recipe="rae-debug")
    folder = run(2, tmp_path / "run", *game, "train.parallel=fsdp", recipe="rae-debug")
    assert_same_training(folder, alone)
    for name in ("critic", "adversarial"):
        assert [e[name] for e in log(folder)] == pytest.approx([e[name] for e in log(alone)], abs=2e-4)
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, alone))
    assert torch.equal(ours["codec.normaliser.mean"], theirs["codec.normaliser.mean"])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_by_phases_as_one(tmp_path: Path, parallel: str) -> None:
    """Parameter groups rest in turn; sharded, the refiner learns from another one behind its generator."""
    how: tuple[str, ...] = ("phases.joint_from=0.25", "phases.refiner_from=0.5")
    if parallel == "fsdp":
        teacher = run_alone(tmp_path / "teacher", *how, recipe="flow-debug")
        how = ("autoencoder=null", f"teacher.model={teacher}", "teacher.refinement_steps=3", "loss.start_share=1")
    settings = (*how, "loss.random_share=0.5")
    one = run_alone(tmp_path / "one", *settings, recipe="flow-debug")
    two = run(2, tmp_path / "two", *settings, f"train.parallel={parallel}", recipe="flow-debug")
    assert_same_training(two, one, ("model.safetensors", "source/model.safetensors"))


def test_two_processes_train_on_latents_as_one(cache: Path, tmp_path: Path) -> None:
    one = run_alone(tmp_path / "one", recipe="sle-debug", data=str(cache))
    two = run(2, tmp_path / "two", f"data.source={cache}", recipe="sle-debug")
    assert_same_training(two, one)


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


def leave() -> None:
    """Leave a world, and look at the threads of its group before they end."""
    seen: list[bool] = []

    def farewell(seconds: float) -> None:
        seen.append(any("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir()))

    distributed.time = SimpleNamespace(sleep=farewell)  # type: ignore[attr-defined]
    with joined_world("cpu"):
        torch.distributed.all_reduce(torch.ones(2))
    assert seen == [True]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
def test_a_world_gives_its_threads_time_to_let_go_of_results() -> None:
    """The group's destructor holds Python's lock and joins threads that may need it: it once waited for ever."""
    assert [code for code, _ in finish(world(2, leave), seconds=60)] == [0, 0]
