"""In which arithmetic a run computes, by the device, the network and the length of the run."""

from __future__ import annotations

import pytest
import torch

from spheregen.measure.precision import Precision
from spheregen.training import arithmetic
from spheregen.training.arithmetic import choose_arithmetic
from spheregen.training.frozen import blank_of_recipe
from spheregen.training.recipe import load_recipe

CPU = torch.device("cpu")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that is fast in bf16, but not for this network in eager mode; and a compiler."""

    def choose(asked: str, device: torch.device, model: object = None) -> Precision:
        return Precision(asked if asked != "auto" else "bf16" if model is None else "float32")

    monkeypatch.setattr(arithmetic, "choose_precision", choose)
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
