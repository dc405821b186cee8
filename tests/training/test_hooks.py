"""Hooks are called when they are due, and what they return is logged; a run is the same with and without them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spheregen.training import train
from spheregen.training.hooks import RunView
from spheregen.training.recipe import load_recipe


def view(folder: Path, *, step: int = 0, model: Any = None, **options: Any) -> RunView:
    """A run of the debug recipe as a hook sees it."""
    recipe = options.pop("recipe", None) or load_recipe("debug")
    return RunView(folder=folder, step=step, total=40, recipe=recipe, model=model, first_batch=lambda: None, **options)  # type: ignore[arg-type]


class Counter:
    """A hook with all methods, which remembers its calls."""

    name, every = "counter", 15

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.logged: list[Mapping[str, Any]] = []
        self.count = 0

    def on_start(self, run: RunView) -> None:
        self.calls.append(("start", run.step))

    def after_step(self, run: RunView, step: int) -> Mapping[str, float]:
        assert run.step == step and run.total == 25 and run.values["loss"] > 0
        assert run.first_batch().inputs.shape == (16, 1, 8, 8)
        torch.rand(3)  # a hook that draws from the global generator changes nothing
        assert not torch.is_grad_enabled() and not run.model.training
        self.calls.append(("step", step))
        self.count += 1
        return {"mine/count": float(self.count)}

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self.logged.append({"step": step, **values})

    def on_end(self) -> None:
        self.calls.append(("end", -1))

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, int]) -> None:
        self.count = state["count"]


class Stop:
    every = 18

    def after_step(self, run: RunView, step: int) -> None:
        raise KeyboardInterrupt


def test_a_hook_hears_of_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    recipe = load_recipe("debug", ["train.steps=25", "train.preview_every=20"])
    first, second = Counter(), Counter()
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, device="cpu", hooks=(first, Stop()))
    assert first.calls == [("start", 0), ("step", 15), ("end", -1)]
    train(recipe, tmp_path, device="cpu", hooks=(second,))
    assert second.calls == [("start", 10), ("step", 15), ("step", 25), ("end", -1)]
    assert second.count == 2  # that of the checkpoint of step 10, in which it had not counted
    assert {"step": 25, "mine/count": 2.0} in second.logged
    assert [entry["preview"].name for entry in second.logged if "preview" in entry] == [
        "step-000000020.png", "step-000000025.png",
    ]  # fmt: skip
    assert [entry["step"] for entry in second.logged if "loss" in entry] == [15, 20, 25]
    train(recipe, tmp_path / "plain", device="cpu")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_hooks_end_whatever_the_others_do(tmp_path: Path) -> None:
    class Broken:
        def on_start(self, run: RunView) -> None:
            raise ValueError("broken")

        def on_end(self) -> None:
            raise ValueError("broken too")

    first, last = Counter(), Counter()
    with pytest.raises(ValueError, match="broken"):
        train(load_recipe("debug"), tmp_path / "run", device="cpu", hooks=(first, Broken(), last))
    assert [hook.calls[-1] for hook in (first, last)] == [("end", -1)] * 2
