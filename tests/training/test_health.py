"""The monitor is silent on healthy runs, names what kills a run once, and survives a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping

import pytest

from spheregen.training.health import HealthMonitor

EVERY = 10
Metrics = dict[str, float]

# step: loss, pixel reconstruction, pixel consistency, latent consistency, gradient norm, neighbour angle, mean angle,
# coverage, image deviation; of the shipped digits recipe (batch 256, warm-up 100, noise up to 53 degrees)
DIGITS = {
    10: (0.9015, 0.08923, 2.138e-06, 0.09236, 1.235, 9.141, 22.52, 0.05358, 0.001327),
    40: (0.7304, 0.07195, 0.0002259, 0.1043, 3.211, 8.866, 23.65, 0.05459, 0.01042),
    60: (0.4336, 0.0421, 0.002561, 0.0746, 0.8968, 9.035, 26.43, 0.05747, 0.04619),
    100: (0.2685, 0.02463, 0.005851, 0.1054, 0.3628, 14.67, 46.97, 0.09701, 0.1467),
    160: (0.1238, 0.009483, 0.008024, 0.1294, 0.1317, 21.82, 67.19, 0.234, 0.1983),
    250: (0.0693, 0.004462, 0.005771, 0.1314, 0.09934, 29.78, 82.81, 0.5109, 0.2153),
    350: (0.05695, 0.003299, 0.005298, 0.1337, 0.1358, 33.63, 86.89, 0.5945, 0.2196),
    500: (0.0474, 0.002543, 0.004677, 0.1262, 0.1203, 36.12, 88.43, 0.6512, 0.2225),
    800: (0.04077, 0.001988, 0.004291, 0.123, 0.09099, 38.2, 89.21, 0.6957, 0.225),
    1100: (0.03819, 0.001721, 0.004376, 0.1224, 0.07397, 39.13, 89.43, 0.7198, 0.2255),
    1500: (0.03778, 0.001648, 0.00443, 0.1244, 0.04476, 39.85, 89.53, 0.7332, 0.2254),
}
# the same recipe with loss.pixel_consistency=1000
DEAD = {
    20: (0.895, 0.08829, 4.219e-06, 0.07879, 1.526, 9.03, 22.21, 0.05334, 0.00169),
    60: (1.468, 0.1274, 0.0001903, 0.02874, 24.03, 5.044, 12.61, 0.04784, 0.003829),
    140: (1.454, 0.125, 0.000203, 0.006822, 15.68, 1.698, 5.115, 0.04634, 0.013),
    200: (0.4964, 0.04902, 5.868e-06, 0.002815, 0.7829, 1.409, 3.899, 0.04585, 0.001828),
    300: (0.4289, 0.04273, 1.452e-06, 0.0008963, 0.3457, 1.209, 3.01, 0.04557, 0.002089),
}
NAMES = (
    "loss",
    "pixel_reconstruction",
    "pixel_consistency",
    "latent_consistency",
    "grad_norm",
    "latent_neighbour_angle",
    "latent_mean_angle",
    "latent_coverage",
    "image_deviation",
)


def metrics_at(run: Mapping[int, tuple[float, ...]], step: int) -> Metrics:
    """The metrics of a run between two of its entries, by geometric interpolation."""
    before = max((s for s in run if s <= step), default=min(run))
    after = min((s for s in run if s >= step), default=max(run))
    place = 0.0 if after == before else (step - before) / (after - before)
    mixed = (
        math.exp((1 - place) * math.log(a) + place * math.log(b)) for a, b in zip(run[before], run[after], strict=True)
    )
    return {**dict(zip(NAMES, mixed, strict=True)), "data_deviation": 0.2297}


def healthy(step: int) -> Metrics:
    """A long healthy run, a little noisy."""
    wobble = 1 + 0.08 * math.sin(step)
    return {
        name: value * (wobble if "deviation" not in name else 1) for name, value in metrics_at(DIGITS, step).items()
    }


def watch(
    monitor: HealthMonitor, metrics: Callable[[int], Metrics], steps: Iterable[int] = range(EVERY, 3001, EVERY)
) -> list[str]:
    return [warning for step in steps for warning in monitor.check(step, metrics(step))]


def digits_monitor() -> HealthMonitor:
    return HealthMonitor(max_angle=53, warmup=100)


def after(step: int, change: Callable[[int], Metrics], until: float = math.inf) -> Callable[[int], Metrics]:
    """A healthy run whose metrics change from a step on."""
    return lambda now: {**healthy(now), **(change(now) if step <= now < until else {})}


@pytest.mark.parametrize("warmup", [0, 100])
def test_a_healthy_run_gives_no_warning(warmup: int) -> None:
    assert watch(HealthMonitor(max_angle=53, warmup=warmup), healthy) == []


def test_a_dead_run_is_named_with_cause_and_cure() -> None:
    warnings = watch(digits_monitor(), lambda step: metrics_at(DEAD, step), range(EVERY, 1001, EVERY))
    constant, latents = warnings
    assert "decoded images hardly differ" in constant and "model.output_activation=none" in constant
    assert "latents collapse" in latents and "3.0 degrees" in latents and "53 degrees" in latents
    assert all("\n" not in warning and warning.startswith("step 4") for warning in warnings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda step: {"image_deviation": 0.01}, "decoded images hardly differ", id="constant"),
        pytest.param(lambda step: {"image_deviation": 1.0}, "decoded images blow up", id="blown"),
        pytest.param(lambda step: {"latent_mean_angle": 12.0}, "latents collapse: two images are", id="merged"),
        pytest.param(lambda step: {"latent_coverage": 0.1}, "latent_coverage fell", id="coverage"),
        pytest.param(lambda step: {"latent_neighbour_angle": 4.0}, "latent_neighbour_angle fell", id="neighbour"),
        pytest.param(lambda step: {"loss": 0.2}, "the loss is 0.2", id="rising"),
    ],
)
def test_each_illness_is_told_once_and_again_after_recovery(change: Callable[[int], Metrics], words: str) -> None:
    monitor = digits_monitor()
    first = watch(monitor, after(1000, change, 1500))
    assert len(first) == 1 and words in first[0]
    again = watch(monitor, after(3500, change), range(3010, 4001, EVERY))
    assert len(again) == 1 and words in again[0]


def test_another_phase_of_a_run_is_judged_by_its_own_numbers() -> None:
    """When a refiner joins, loss and gradient jump; behind the grace its own spikes are told."""

    def joined(step: int) -> Metrics:
        if step <= 1000:
            return metrics_at(DIGITS, step)
        return {
            **metrics_at(DIGITS, step),
            "lr_refiner": 1e-4,
            "loss": 2.0,
            "grad_norm": 30.0 if step != 2000 else 900.0,
        }

    (warning,) = watch(digits_monitor(), joined, range(EVERY, 3000, EVERY))
    assert warning.startswith("step 2000: the gradient norm")


@pytest.mark.parametrize("stop", [410, 1090])
def test_a_resumed_run_warns_as_an_uninterrupted_one(stop: int) -> None:
    def ill(step: int) -> Metrics:
        change = {"image_deviation": 0.001, "loss": 0.3, "grad_norm": 5.0, "latent_coverage": 0.1}
        return after(1000, lambda _: change)(step)

    steps = range(EVERY, 2001, EVERY)
    whole = digits_monitor()
    expected = watch(whole, ill, steps)
    first = digits_monitor()
    warnings = watch(first, ill, (step for step in steps if step <= stop))
    second = digits_monitor()
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    warnings += watch(second, ill, (step for step in steps if step > stop))
    assert warnings == expected and len(expected) >= 4
    assert second.state() == whole.state()


def test_the_hook_warns_of_the_run_s_own_entries() -> None:
    warnings: list[str] = []
    monitor = HealthMonitor(max_angle=None, warn=warnings.append)
    for step in range(10, 101, 10):
        monitor.on_log(step, {"loss": 1.0, "image_deviation": 2.0, "data_deviation": 0.2})
        monitor.on_log(step, {"mine/score": 1.0})
    assert len(warnings) == 1 and warnings[0].startswith("warning: step 30: decoded images blow up")
