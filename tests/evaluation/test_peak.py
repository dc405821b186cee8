"""The measured peak of square matrix products: within its budget, and without touching torch's randomness."""

from __future__ import annotations

import json

import pytest
import torch

from spheregen.evaluation import peak
from spheregen.evaluation.peak import PeakMeter, matmul_peak, synchronize

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_peak_is_a_rate(precision: str) -> None:
    assert 1e6 < matmul_peak(CPU, precision, sizes=(32, 64), repeats=2) < 1e16


def test_each_size_counts_with_its_median_and_the_best_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = PeakMeter(CPU, "float32", sizes=(16, 32))
    times = iter([1.0, 8.0, 9.0, 2.0, 1.0, 4.0])  # of 16, of 32, and again
    monkeypatch.setattr(peak, "_seconds", lambda *_: next(times))
    for _ in range(3):
        meter.sample()
    result = meter.result()
    assert result.by_size == {16: 2 * 16**3 / 1.0, 32: 2 * 32**3 / 4.0}
    assert result.size == 32 and result.flops == 2 * 32**3 / 4
    assert not result.left_out
    assert json.loads(json.dumps(result.as_dict()))["by_size"] == {"16": 8192.0, "32": 16384.0}


def test_products_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of a million operations a second, which no clock has to tell."""
    multiplied: list[int] = []

    def slow(a: torch.Tensor, b: torch.Tensor, count: int) -> float:
        multiplied.append(a.shape[0])
        return 2 * a.shape[0] ** 3 / 1e6

    monkeypatch.setattr(peak, "_seconds", slow)
    monkeypatch.setattr(peak, "PROBES", (8, 16))
    meter = PeakMeter(CPU, "float32", sizes=(32, 64, 128), max_seconds=1.0)
    meter.sample()
    assert meter.result().left_out == (128,)
    assert max(multiplied) == 64
    assert meter.result().flops == pytest.approx(1e6)

    stand_in = PeakMeter(CPU, "float32", sizes=(128, 256), max_seconds=1.0)
    stand_in.sample()
    assert stand_in.result().size == 16 and stand_in.result().left_out == (128, 256)


def test_nothing_sampled_is_an_error() -> None:
    with pytest.raises(ValueError, match="sample"):
        PeakMeter(CPU, "float32", sizes=(8,)).result()


def test_random_state_and_synchronisation() -> None:
    before = torch.get_rng_state()
    matmul_peak(CPU, "float32", sizes=(16,), repeats=1)
    synchronize(CPU)
    assert torch.equal(before, torch.get_rng_state())
