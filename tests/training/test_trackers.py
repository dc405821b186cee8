"""Trackers hear of a run, continue with it, and never stop it."""

from __future__ import annotations

import json
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from spheregen.data import image_grid, save_png
from spheregen.errors import ConfigError
from spheregen.training import trackers
from spheregen.training.hooks import Hooks
from spheregen.training.trackers import Tracker
from tests.training.test_hooks import view


class FakeRun:
    def __init__(self, step: int) -> None:
        self.step, self.logged, self.finished = step, list[tuple[int, dict[str, Any]]](), False
        self.fails = False

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if self.fails:
            raise ConnectionError("no route\nto host")
        self.logged.append((step, dict(values)))

    def finish(self) -> None:
        self.finished = True


class FakeWandb(types.ModuleType):
    """As much of wandb as a tracker uses."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.arguments: list[dict[str, Any]] = []
        self.step_of_a_continued_run = 0
        self.problem: Exception | None = None

    def init(self, **arguments: Any) -> FakeRun:
        if self.problem:
            raise self.problem
        self.arguments.append(arguments)
        self.runs.append(FakeRun(self.step_of_a_continued_run))
        return self.runs[-1]

    def Image(self, path: str) -> str:  # noqa: N802  the name in wandb
        return f"image of {Path(path).name}"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "step-5.png"
    save_png(image_grid(torch.rand(4, 1, 8, 8)), path)
    return path


def start(folder: Path, *names: str, step: int = 0, warn: Any = pytest.fail) -> Hooks:
    hooks = Hooks([Tracker(name, warn) for name in names], 40)
    hooks.start(view(folder, step=step))
    return hooks


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_tensorboard_gets_numbers_images_and_settings_and_forgets_what_a_continued_run_repeats(
    tmp_path: Path, image: Path
) -> None:
    hooks = start(tmp_path, "tensorboard")
    for step in (5, 10, 15):
        hooks.log(step, {"loss": float(step), "heldout/psnr": 20.0})
    hooks.log(5, {"preview": image})
    hooks.end()
    assert "config/text_summary" in events(tmp_path).Tags()["tensors"]
    hooks = start(tmp_path, "tensorboard", step=10)
    hooks.log(15, {"loss": -15.0})
    hooks.end()
    written = events(tmp_path)
    assert [(event.step, event.value) for event in written.Scalars("train/loss")] == [(5, 5.0), (10, 10.0), (15, -15.0)]
    assert [event.step for event in written.Scalars("heldout/psnr")] == [5, 10]
    shown = written.Images("preview")[0]
    assert (shown.step, shown.width, shown.height) == (5, 22, 22)


def test_wandb_gets_numbers_images_and_settings(tmp_path: Path, wandb: FakeWandb, image: Path) -> None:
    hooks = start(tmp_path, "wandb")
    hooks.log(5, {"loss": 0.5, "heldout/psnr": 20.0, "preview": image})
    hooks.end()
    (arguments,), (run,) = wandb.arguments, wandb.runs
    assert arguments["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (arguments["project"], arguments["name"], arguments["dir"]) == ("spheregen", "debug", str(tmp_path))
    assert arguments["config"]["train"]["batch_size"] == 16
    assert run.logged == [(5, {"train/loss": 0.5, "heldout/psnr": 20.0, "preview": "image of step-5.png"})]
    assert run.finished


def test_a_continued_run_goes_on_in_its_wandb_run_and_a_new_one_does_not(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path, "wandb")
    wandb.step_of_a_continued_run = 16
    hooks = start(tmp_path, "wandb", step=10)
    for step in (15, 20):
        hooks.log(step, {"loss": 1.0})
    assert [step for step, _ in wandb.runs[1].logged] == [20]  # 15 is there already, with the same value
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    start(tmp_path, "wandb")
    (tmp_path / "wandb.json").write_text("{torn")
    start(tmp_path, "wandb", step=5)
    first, second, third, fourth = (arguments["id"] for arguments in wandb.arguments)
    assert first == second and len({second, third, fourth}) == 3
    assert wandb.arguments[2]["project"] == "mine"


def test_what_does_not_open_stops_a_new_run_only(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.problem = RuntimeError("api_key not configured")
    warnings: list[str] = []
    with pytest.raises(ConfigError, match=r"api_key.*WANDB_MODE"):
        start(tmp_path, "wandb")
    hooks = start(tmp_path, "wandb", step=5, warn=warnings.append)
    hooks.log(6, {"loss": 1.0})
    hooks.end()
    assert len(warnings) == 1


def test_failures_are_told_once_and_forgiven(tmp_path: Path, wandb: FakeWandb) -> None:
    warnings: list[str] = []
    hooks = start(tmp_path, "wandb", warn=warnings.append)
    for step, fails in ((1, True), (2, True), (3, False)):
        wandb.runs[0].fails = fails
        hooks.log(step, {"loss": 1.0})
    hooks.end()
    assert len(warnings) == 1 and "no route to host" in warnings[0] and "log.jsonl" in warnings[0]
    assert [step for step, _ in wandb.runs[0].logged] == [3]


def test_closing_does_not_hang(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    warnings: list[str] = []
    release = threading.Event()
    monkeypatch.setattr(FakeRun, "finish", lambda self: release.wait(10))
    hooks = start(tmp_path, "wandb", warn=warnings.append)
    hooks.end()
    release.set()
    assert len(warnings) == 1 and "0.05 s" in warnings[0]
