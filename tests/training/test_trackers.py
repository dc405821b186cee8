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
from spheregen.training.trackers import open_trackers


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
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "step-5.png"
    save_png(image_grid(torch.rand(4, 1, 8, 8)), path)
    return path


def start(run: Path, *names: Any, step: int = 0, warn: Any = None) -> list[trackers.Tracker]:
    return open_trackers(names, run, name="digits", config={"lr": 1e-3, "data": {"x": 1}}, start_step=step, warn=warn)


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / trackers.TENSORBOARD), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def test_no_tracker_is_no_package_and_no_file(tmp_path: Path) -> None:
    assert start(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_numbers_pictures_and_settings(tmp_path: Path, picture: Path) -> None:
    (tracker,) = start(tmp_path, "tensorboard")
    tracker.log(5, {"loss": 0.5, "heldout/psnr": 20.0})
    tracker.image(5, "preview", picture)
    tracker.close()
    assert scalars(tmp_path, "train/loss") == [(5, 0.5)]
    assert scalars(tmp_path, "heldout/psnr") == [(5, 20.0)]
    image = events(tmp_path).Images("preview")[0]
    assert (image.step, image.width, image.height) == (5, 22, 22)
    assert "config/text_summary" in events(tmp_path).Tags()["tensors"]


def test_tensorboard_forgets_what_a_continued_run_repeats(tmp_path: Path) -> None:
    (tracker,) = start(tmp_path, "tensorboard")
    for step in (5, 10, 15):
        tracker.log(step, {"loss": float(step)})
    tracker.close()
    (tracker,) = start(tmp_path, "tensorboard", step=10)
    tracker.log(15, {"loss": -15.0})
    tracker.close()
    assert scalars(tmp_path, "train/loss") == [(5, 5.0), (10, 10.0), (15, -15.0)]


def test_wandb_gets_numbers_pictures_and_settings(tmp_path: Path, wandb: FakeWandb, picture: Path) -> None:
    (tracker,) = start(tmp_path, "wandb")
    tracker.log(5, {"loss": 0.5, "heldout/psnr": 20.0})
    tracker.image(5, "preview", picture)
    tracker.close()
    (arguments,), (run,) = wandb.arguments, wandb.runs
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert arguments["id"] == identity and arguments["resume"] == "allow"
    assert (arguments["project"], arguments["name"], arguments["dir"]) == ("spheregen", "digits", str(tmp_path))
    assert arguments["config"] == {"lr": 1e-3, "data": {"x": 1}}
    assert run.logged == [(5, {"train/loss": 0.5, "heldout/psnr": 20.0}), (5, {"preview": "image of step-5.png"})]
    assert run.finished


def test_a_continued_run_goes_on_in_its_wandb_run(tmp_path: Path, wandb: FakeWandb) -> None:
    start(tmp_path, "wandb")
    wandb.step_of_a_continued_run = 16
    (tracker,) = start(tmp_path, "wandb", step=10)
    for step in (15, 20):
        tracker.log(step, {"loss": 1.0})
    assert wandb.arguments[0]["id"] == wandb.arguments[1]["id"]
    assert [step for step, _ in wandb.runs[1].logged] == [20]  # 15 is there already, with the same value


def test_a_run_that_starts_anew_is_another_wandb_run(tmp_path: Path, wandb: FakeWandb) -> None:
    start(tmp_path, "wandb")
    start(tmp_path, "wandb")
    assert wandb.arguments[0]["id"] != wandb.arguments[1]["id"]
    (tmp_path / "wandb.json").write_text("{torn")
    start(tmp_path, "wandb", step=5)
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == wandb.arguments[2]["id"]


def test_the_wandb_project_may_be_chosen(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    start(tmp_path, "wandb")
    assert wandb.arguments[0]["project"] == "mine"


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorboard", "torch.utils.tensorboard", "spheregen[track]"), ("wandb", "wandb", "spheregen[wandb]")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for step in (0, 10):
        with pytest.raises(ConfigError) as caught:
            start(tmp_path, name, step=step)
        assert f'pip install "{extra}"' in str(caught.value)


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        start(tmp_path, "tensorbord")
    with pytest.raises(ConfigError, match="twice"):
        start(tmp_path, "tensorboard", "tensorboard")


def test_what_does_not_open_stops_a_new_run_only(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.problem = RuntimeError("api_key not configured")
    warnings: list[str] = []
    with pytest.raises(ConfigError, match=r"api_key not configured.*WANDB_MODE=offline"):
        start(tmp_path, "tensorboard", "wandb", warn=warnings.append)
    assert warnings == []
    opened = start(tmp_path, "tensorboard", "wandb", step=5, warn=warnings.append)
    assert len(opened) == 1 and len(warnings) == 1
    opened[0].close()


def test_failures_are_told_once_and_forgiven(tmp_path: Path, wandb: FakeWandb, picture: Path) -> None:
    warnings: list[str] = []
    (tracker,) = start(tmp_path, "wandb", warn=warnings.append)
    wandb.runs[0].fails = True
    tracker.log(1, {"loss": 1.0})
    tracker.image(1, "preview", picture)
    wandb.runs[0].fails = False
    tracker.log(2, {"loss": 1.0})
    tracker.close()
    assert len(warnings) == 1 and "no route to host" in warnings[0] and "log.jsonl" in warnings[0]
    assert [step for step, _ in wandb.runs[0].logged] == [2]


def test_failures_reach_the_logger_by_default(
    tmp_path: Path, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    (tracker,) = start(tmp_path, "wandb")
    wandb.runs[0].fails = True
    tracker.log(1, {"loss": 1.0})
    assert "wandb failed" in caplog.text


def test_closing_does_not_hang(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    warnings: list[str] = []
    (tracker,) = start(tmp_path, "wandb", warn=warnings.append)
    release = threading.Event()
    monkeypatch.setattr(wandb.runs[0], "finish", lambda: release.wait(10))
    tracker.close()
    release.set()
    assert len(warnings) == 1 and "did not close within 0.05 s" in warnings[0]
