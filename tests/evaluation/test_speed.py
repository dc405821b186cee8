"""What sampling costs: settings take turns, every number is there, schedules of numbers fit one number of steps."""

from __future__ import annotations

import json

import pytest

from spheregen.evaluation import speed
from spheregen.evaluation.speed import SPEED_STEPS, cost_figures, sampling_speed
from spheregen.pipeline import GenerationOptions, Pipeline
from tests.family.test_sphere_flow import refined


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("digits", device="cpu", progress=False, quiet=True)


def test_each_setting_is_timed_as_asked(pipe: Pipeline) -> None:
    one, four = sampling_speed(
        pipe, [GenerationOptions(steps=1), GenerationOptions(steps=4)], batch=4, repeats=1, singles=2
    )
    assert (one["steps"], four["steps"], one["batch"]) == (1, 4, 4)
    assert one["images_per_second"] > 0
    assert set(one["latency_ms"]) == {"p50", "p90", "p99"}
    assert one["latency_ms"]["p50"] <= one["latency_ms"]["p99"]
    (alone,) = sampling_speed(pipe, [GenerationOptions(steps=1)], batch=4, repeats=1, singles=0)
    assert alone["latency_ms"] == {}


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still: only what is counted counts."""
    monkeypatch.setattr(speed, "seconds_in_turns", lambda calls, *_: [(1.0,)] * len(calls))


def test_costs_grow_with_steps_by_both_conventions(pipe: Pipeline, instant: None) -> None:
    found = cost_figures(pipe, GenerationOptions(schedule=[0.5, 0.5, 0.5]), batch=2)
    json.dumps(found, allow_nan=False)
    assert [row["steps"] for row in found["by_steps"]] == list(SPEED_STEPS)
    assert all(row["gflops"] < row["counted_gflops"] for row in found["by_steps"])
    gflops = [row["gflops"] for row in found["by_steps"]]
    assert gflops == sorted(gflops)
    decoder, encoder = found["gflops"]["decoder"], found["gflops"]["encoder"]
    assert gflops[2] == pytest.approx(2 * (4 * decoder + 3 * encoder)), "the model's guidance doubles both"


def test_refining_is_part_of_the_cost(instant: None) -> None:
    options = GenerationOptions(guidance=1.0, refinement_steps=3, solver="heun", refinement_guidance=2.0)
    found = cost_figures(Pipeline(refined(), device="cpu", progress=False), options, batch=2)
    decoder, refiner = found["gflops"]["decoder"], found["gflops"]["refiner"]
    assert found["by_steps"][0]["gflops"] == pytest.approx(decoder + 2 * 5 * refiner)
