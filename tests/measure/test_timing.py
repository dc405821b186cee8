"""Timing: the peak of matrix products within its budget, calls in turns, percentiles that occurred."""

from __future__ import annotations

import json

import pytest
import torch

from spheregen.measure import timing
from spheregen.measure.timing import PeakMeter, matmul_peak, peak_memory, percentile, seconds_in_turns

CPU = torch.device("cpu")


def test_each_size_counts_with_its_median_and_the_best_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = PeakMeter(CPU, "float32", sizes=(16, 32))
    with pytest.raises(ValueError, match="sample"):
        meter.result()
    times = iter([1.0, 8.0, 9.0, 2.0, 1.0, 4.0])  # of 16, of 32, and again
    monkeypatch.setattr(timing, "_product_seconds", lambda *_: next(times))
    for _ in range(3):
        meter.sample()
    result = meter.result()
    assert result.by_size == {16: 2 * 16**3 / 1.0, 32: 2 * 32**3 / 4.0}
    assert (result.size, result.flops, result.left_out) == (32, 2 * 32**3 / 4, ())
    assert json.loads(json.dumps(result.as_dict()))["by_size"] == {"16": 8192.0, "32": 16384.0}


def test_products_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of a million operations a second, which no clock has to tell."""
    multiplied: list[int] = []

    def slow(a: torch.Tensor, b: torch.Tensor, count: int) -> float:
        multiplied.append(a.shape[0])
        return 2 * a.shape[0] ** 3 / 1e6

    monkeypatch.setattr(timing, "_product_seconds", slow)
    monkeypatch.setattr(timing, "PROBES", (8, 16))
    for sizes, best, left_out in (((32, 64, 128), None, (128,)), ((128, 256), 16, (128, 256))):
        meter = PeakMeter(CPU, "float32", sizes=sizes, max_seconds=1.0)
        meter.sample()
        result = meter.result()
        assert result.left_out == left_out and max(multiplied) == 64
        assert best in (None, result.size)
        assert result.flops == pytest.approx(1e6)


def test_calls_take_turns() -> None:
    seen: list[str] = []
    found = seconds_in_turns([lambda: seen.append("a"), lambda: seen.append("b")], 2, CPU)
    assert seen == ["a", "b", "a", "b"] and [len(each) for each in found] == [2, 2]
    assert seconds_in_turns([lambda: None], 0, CPU) == [()]
    memory = peak_memory(lambda: torch.ones(1000, 1000), CPU)
    assert memory is None or memory > 4
    values = [float(value) for value in range(10, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 90, 99, 100)] == [1, 5, 9, 10, 10]
    before = torch.get_rng_state()
    assert 1e6 < matmul_peak(CPU, "bf16", sizes=(32, 64), repeats=2) < 1e16
    assert torch.equal(before, torch.get_rng_state())
