"""In which arithmetic a run computes, by the device, the network and the length of the run."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch

from spheregen.measure.precision import Precision
from spheregen.training import arithmetic
from spheregen.training.arithmetic import (
    COMPILE_SECONDS,
    Arithmetic,
    CompileClock,
    choose_arithmetic,
    compile_seconds,
    continued,
)
from spheregen.training.frozen import blank_of_recipe
from spheregen.training.recipe import load_recipe
from tests.training.runs import assert_same_run, interrupted, run

CPU = torch.device("cpu")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor that is fast in bf16, but not for this network in eager mode; and a compiler."""

    def choose(asked: str, device: torch.device, model: object = None) -> Precision:
        return Precision(asked if asked != "auto" else "bf16" if model is None else "float32")

    monkeypatch.setenv("SPHEREGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(arithmetic, "choose_precision", choose)
    monkeypatch.setattr(arithmetic, "product_speeds", lambda: (5e10, 2e11))
    monkeypatch.setattr(arithmetic, "_has_compiler", lambda: True)


def chosen(recipe: str, total: int, *changes: str) -> tuple[str, bool]:
    loaded = load_recipe(recipe, list(changes))
    with torch.device("meta"):
        model = blank_of_recipe(loaded)
    found = choose_arithmetic(loaded, CPU, model, total)
    return found.precision.name, found.compiled


@pytest.mark.usefixtures("fast")
def test_long_runs_of_transformers_are_compiled_where_bf16_is_fast() -> None:
    assert chosen("digits", 100_000) == ("bf16", True)
    assert chosen("digits", 10) == ("float32", False)
    assert chosen("conv-letters", 100_000) == ("float32", False)  # no transformer blocks


@pytest.mark.usefixtures("fast")
def test_a_wish_is_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("digits", 100_000, "train.precision=float32") == ("float32", False)
    assert chosen("digits", 10, "train.compile=true") == ("float32", True)
    assert chosen("digits", 100_000, "train.compile=false") == ("float32", False)
    monkeypatch.setattr(arithmetic, "_has_compiler", lambda: False)
    assert chosen("digits", 100_000) == ("float32", False)


def test_elsewhere_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "choose_precision", lambda *_: Precision("float32"))
    assert chosen("digits", 100_000) == ("float32", False)


@pytest.mark.usefixtures("fast")
def test_what_compiling_takes_is_measured_and_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("digits")
    with torch.device("meta"):
        model = blank_of_recipe(recipe)
    steps = next(total for total in itertools.count(500, 500) if chosen("digits", total)[1])
    assert compile_seconds(recipe, model) == COMPILE_SECONDS
    for seconds, compiled in ((4 * COMPILE_SECONDS, False), (COMPILE_SECONDS / 4, True)):
        ticks = itertools.chain([0.0, seconds], itertools.count(seconds + 1, 1.0))
        monkeypatch.setattr(time, "monotonic", lambda ticks=ticks: next(ticks))
        clock = CompileClock(recipe, model, timed=True)
        for _ in range(20):
            clock.step()
        assert compile_seconds(recipe, model) == pytest.approx(seconds - 1, abs=0.1)
        assert chosen("digits", steps)[1] == compiled
    assert chosen("digits", steps // 3)[1]  # it takes less than was thought
    other = load_recipe("digits", ["train.batch_size=64"])
    with torch.device("meta"):
        assert compile_seconds(other, blank_of_recipe(other)) == COMPILE_SECONDS


@pytest.mark.usefixtures("fast")
def test_a_run_goes_on_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("digits")
    full, half = (Arithmetic(Precision(name), name == "bf16") for name in ("float32", "bf16"))
    for now, before in itertools.product((full, half), repeat=2):
        assert continued(now, before.as_dict(), recipe, CPU).as_dict() == before.as_dict()
        assert continued(now, None, recipe, CPU) == now
    monkeypatch.setattr(arithmetic, "choose_precision", lambda *_: Precision("float32"))
    assert continued(full, half.as_dict(), recipe, CPU) == full  # this machine is slow in bf16


def test_a_choice_that_falls_otherwise_later_does_not_change_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is measured of a machine may change between two calls; the run must not."""
    for name in ("whole", "run"):
        monkeypatch.setattr(arithmetic, "choose_precision", lambda *_: Precision("bf16"))
        if name == "run":
            interrupted(tmp_path / name, "train.steps=12", "train.checkpoint_every=4", stop=6)
            monkeypatch.setattr(
                arithmetic, "choose_precision", lambda _, device, model=None: Precision("float32" if model else "bf16")
            )
        run(tmp_path / name, "train.steps=12", "train.checkpoint_every=4")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
