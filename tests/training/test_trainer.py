"""A run learns, writes what it promises, and continues to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spheregen.errors import ConfigError, SphereGenError, TrainingError
from spheregen.folders.model_folder import load_model
from spheregen.nn.block import blocks_of
from spheregen.training import checkpoint as checkpoints
from spheregen.training.health import HealthMonitor
from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.processes import Started, command
from tests.training.runs import Messages, assert_same_run, interrupted, log, run, wait_for_a_checkpoint, weights


def test_a_run_learns_and_writes_what_it_promises(whole: Path) -> None:
    entries = log(whole)
    assert [entry["step"] for entry in entries] == list(range(5, 41, 5))
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    terms = {"pixel_reconstruction", "pixel_consistency", "latent_consistency"}
    assert terms | {"loss", "grad_norm", "lr", "epoch"} <= entries[0].keys()
    loaded = load_model(whole)
    assert loaded.info.class_names == tuple("0123456789")
    assert loaded.info.sampling["steps"] == 4
    assert sorted(path.name for path in (whole / "previews").iterdir()) == ["step-000000020.png", "step-000000040.png"]
    assert [path.name for path in sorted((whole / "state").iterdir())] == [
        "step-000000030.safetensors",
        "step-000000040.safetensors",
    ]
    assert "arXiv 2602.15030" in (whole / "README.md").read_text()
    assert not list(whole.rglob("*.tmp"))


@pytest.mark.parametrize("stop", [1, 33])
def test_interrupted_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path, stop: int) -> None:
    folder = interrupted(tmp_path / "run", stop=stop)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 34, "lo')  # torn
    run(folder)
    assert_same_run(folder, whole)


def test_kill_minus_nine_and_continued_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = Started(command, ["train", "debug", "--out", str(folder), "--device", "cpu"])
    wait_for_a_checkpoint(folder, process)
    process.send_signal(signal.SIGKILL)
    process.finish()
    (folder / "state" / ".step-000000099.safetensors.x.tmp").write_bytes(b"half a checkpoint")
    run(folder)
    assert_same_run(folder, whole)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(("step", "written"), [(10, "save_checkpoint"), (40, "save_model")])
def test_killed_while_the_first_or_the_last_checkpoint_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, written: str
) -> None:
    """Dying just before the model or just before the state is written leaves nothing stale that looks complete."""
    folder = tmp_path / "run"
    module = sys.modules["spheregen.training.run"]
    real, calls = getattr(module, written), []

    def dies(*arguments: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == step // 10:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(module, written, dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    monkeypatch.undo()
    run(folder)
    assert_same_run(folder, whole)


class Signal(Messages):
    """Sends this process a signal after a number of steps, as a cluster or Ctrl-C would."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__()
        self.number, self.stop_step = number, step

    def step(self, done: int, metrics: Mapping[str, float] | None) -> None:
        if done == self.stop_step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_the_step_it_comes_in(
    whole: Path, tmp_path: Path, number: int, ending: type[BaseException]
) -> None:
    folder = tmp_path / "run"
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    reporter = Signal(number, step=17)
    with pytest.raises(ending) as caught:
        run(folder, reporter=reporter)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 128 + signal.SIGTERM
    assert any("stopped after step 18, which is saved" in line for line in reporter.lines)
    assert checkpoints.checkpoint_path(folder, 18).is_file()
    assert {"steps": 18, "planned_steps": 40}.items() <= load_model(folder).info.training.items()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    run(folder)
    assert_same_run(folder, whole)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_a_cluster_that_stops_all_processes_at_once_gets_a_saved_run(whole: Path, tmp_path: Path) -> None:
    """The workers hear the signal too; they must live until the main process has finished its step."""
    folder = tmp_path / "run"
    settings = ("--set", "data.cache_mb=0", "--set", "data.workers=2")
    process = Started(command, ["train", "debug", "--out", str(folder), "--device", "cpu", *settings])
    wait_for_a_checkpoint(folder, process)
    process.send_signal(signal.SIGTERM)
    code, _, messages = process.finish(60)
    assert code in (143, 0), messages  # 0: the run was quicker
    assert code == 0 or "which is saved" in messages
    run(folder)
    assert_same_run(folder, whole)


def test_another_optimiser_learns_and_continues_exactly_with_recomputing(tmp_path: Path) -> None:
    settings = ("optimizer.name=muon", "model.decoder={width: 48, depth: 1, heads: 2}", "train.steps=25")
    reference = run(tmp_path / "whole", *settings)
    entries = log(reference)
    assert entries[-1]["loss"] < 0.9 * entries[0]["loss"]
    folder = interrupted(tmp_path / "run", *settings, stop=13)
    run(folder, *settings, "train.recompute=true")
    assert_same_run(folder, reference)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it traces
def test_compiled_blocks_compute_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(model: torch.nn.Module) -> None:
        for block in blocks_of(model):
            block.compile(dynamic=False, backend="aot_eager")  # what is traced, without the minute that kernels take

    monkeypatch.setattr("spheregen.training.step.compile_blocks", traced)
    messages = Messages()
    folder = run(tmp_path / "run", "train.compile=true", "train.log_every=5", reporter=messages)
    assert any(", compiled" in line for line in messages.lines)
    assert [entry["loss"] for entry in log(folder)] == pytest.approx([entry["loss"] for entry in log(whole)], rel=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it traces
def test_a_compiler_that_fails_is_one_line_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(graph: object, inputs: object) -> object:
        raise RuntimeError("no C++ compiler")

    def broken(model: torch.nn.Module) -> None:
        for block in blocks_of(model):
            block.compile(dynamic=False, backend=failing)

    monkeypatch.setattr("spheregen.training.step.compile_blocks", broken)
    with pytest.raises(
        TrainingError, match=r"torch\.compile failed .*no C\+\+ compiler.* train\.compile=false"
    ) as caught:
        run(tmp_path / "run", "train.compile=true")
    assert "\n" not in str(caught.value)


def test_warnings_of_a_dying_run_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mapping[str, float]] = []

    def alarmed(self: HealthMonitor, step: int, metrics: Mapping[str, float]) -> list[str]:
        seen.append(metrics)
        return ["the run is dying"] if step == 10 else []

    monkeypatch.setattr(HealthMonitor, "check", alarmed)
    messages = Messages()
    run(tmp_path / "run", "train.steps=15", reporter=messages)
    assert messages.lines.count("warning: the run is dying") == 1
    observed = {"latent_coverage", "latent_mean_angle", "image_deviation", "data_deviation", "grad_norm"}
    assert len(seen) == 3 and all(observed <= metrics.keys() for metrics in seen)


def test_a_complete_run_is_left_alone(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    messages = Messages()
    result = train(load_recipe("debug"), whole, device="cpu", reporter=messages)
    assert result.steps_done_now == 0
    assert any("complete" in line for line in messages.lines)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


def test_changed_settings_are_refused_with_the_differences(whole: Path) -> None:
    with pytest.raises(TrainingError, match=r"optimizer\.lr: 0\.003 -> 0\.001.*train\.seed: 0 -> 7"):
        run(whole, "optimizer.lr=1e-3", "train.seed=7")
    with pytest.raises(TrainingError, match="data set is another one"):
        run(whole, "data.split=test")
    run(whole, "train.log_every=7", "train.keep=5")  # what does not change the weights may change


def test_a_non_finite_loss_stops_with_the_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(tmp_path / "run", stop=12)
    before = (folder / "state" / "step-000000010.safetensors").read_bytes()
    from spheregen.family.sphere_encoder.loss import AutoencoderObjective

    original = AutoencoderObjective.draw

    def poisoned(
        self: AutoencoderObjective, batch: int, generator: torch.Generator, rows: slice | None, **more: float
    ) -> object:
        draws = original(self, batch, generator, rows, **more)
        draws.noise[0, 0, 0] = float("nan")
        return draws

    monkeypatch.setattr(AutoencoderObjective, "draw", poisoned)
    with pytest.raises(TrainingError, match=r"not finite at step 11.*step 10 is intact") as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in (folder / "state").iterdir()] == ["step-000000010.safetensors"]
    assert (folder / "state" / "step-000000010.safetensors").read_bytes() == before
    run(folder)  # and it can go on


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interrupted(tmp_path / "run", stop=12)

    def full_disk(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SphereGenError, match="No space left on device") as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert [path.name for path in (folder / "state").iterdir()] == ["step-000000010.safetensors"]
    monkeypatch.undo()
    run(folder)
    assert_same_run(folder, whole)


def test_folders_and_data_that_do_not_fit(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(SphereGenError, match="is a file"):
        run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "precious"
    (tmp_path / "model").mkdir()
    shutil.copy(whole / "model.safetensors", tmp_path / "model")
    with pytest.raises(TrainingError, match="without training state"):
        run(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"has 10 classes.*3.*--set model\.num_classes=10"):
        run(tmp_path / "other", "model.num_classes=3")
    assert not (tmp_path / "other").exists()


def test_weights_stay_float32_under_bf16(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "train.precision=bf16", "train.steps=3")
    assert all(tensor.dtype == torch.float32 for tensor in weights(folder).values())
    last = checkpoints.latest_checkpoint(folder)
    assert last is not None
    assert all(t.dtype == torch.float32 for n, t in load_file(last.path).items() if not n.startswith("meter."))


# fine-tuning

ADAPTED = ("model.encoder={width: 16, depth: 2, heads: 2}", "model.num_classes=0")
TUNED = ("train.steps=9", "train.checkpoint_every=3")


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    """A trained model as it is passed on: without the state of its run, and with a licence."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(whole / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["provenance"] = {"source": "digits.pth", "license": "cc-by-4.0"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fine_tuning_starts_where_the_model_was(base: Path, tmp_path: Path) -> None:
    messages = Messages()
    settings = ("train.steps=1", "optimizer.lr=1e-30")  # a step of no size
    still = run(tmp_path / "still", *settings, f"init={base}", reporter=messages)
    assert log(still)[0]["loss"] < 0.9 * log(run(tmp_path / "fresh", *settings))[0]["loss"]
    told = [line for line in messages.lines if line.startswith(f"from {base}: ")]
    assert len(told) == 1 and "(69 of 69 tensors)" in told[0]
    ours, theirs = weights(still), weights(base)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_fine_tuned_run_continues_to_the_bit_without_its_base(base: Path, tmp_path: Path) -> None:
    settings = (f"init={base}", *TUNED, *ADAPTED)
    reference = run(tmp_path / "whole", *settings)
    folder = interrupted(tmp_path / "run", *settings, stop=2)  # before its first checkpoint
    interrupted(folder, *settings, stop=5)
    shutil.rmtree(base)
    messages = Messages()
    run(folder, *settings, reporter=messages)
    assert_same_run(folder, reference)
    assert not any("parameters (" in line for line in messages.lines)  # the checkpoint rules, nothing is transferred
    assert (folder / "config.json").read_bytes() == (reference / "config.json").read_bytes()
    info = load_model(folder).info
    assert info.provenance == {"base_model": f"{base} (recipe debug)", "source": "digits.pth", "license": "cc-by-4.0"}
    assert info.training["init"] == str(base)
    card = (folder / "README.md").read_text()
    assert all(text in card for text in ("license: cc-by-4.0", "digits.pth", str(base)))


def test_another_base_is_refused_as_any_other_change(whole: Path, base: Path, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "train.steps=1", f"init={base}")
    for init in (str(whole), "null"):
        with pytest.raises(TrainingError, match=f"init: {base} -> {init.replace('null', 'None')}"):
            run(folder, "train.steps=1", f"init={init}")
    with pytest.raises(TrainingError, match=r"init: None -> .*--out"):
        run(whole, f"init={whole}")  # into the folder that it starts from
    with pytest.raises(TrainingError, match="without training state"):
        run(base, f"init={base}")


def test_a_wrong_base_is_one_line(base: Path, tmp_path: Path) -> None:
    def refused(match: str, init: Path, *overrides: str) -> None:
        with pytest.raises(SphereGenError, match=match) as caught:
            run(tmp_path / "run", f"init={init}", *overrides)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused("no model folder at", tmp_path / "nothing")
    wide = "{width: 32, depth: 1, heads: 2}"
    refused("nothing of the model fits", base, f"model.encoder={wide}", f"model.decoder={wide}")
    state = weights(base)
    state["decoder.embed.weight"][0, 0] = float("inf")
    save_file(state, base / "model.safetensors")
    refused(r"not finite.*decoder\.embed\.weight", base)
    (base / "model.safetensors").write_bytes(b"half of it")
    refused("truncated or of another kind", base)
    (base / "config.json").write_text('{"model_class": "Unknown"}')
    refused("names no model class that this version knows", base)
