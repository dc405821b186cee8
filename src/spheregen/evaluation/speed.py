"""The cost of sampling: operations counted, and speed and memory measured on this device."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from spheregen.family.registry import cost_of
from spheregen.measure.timing import device_name, peak_memory, percentile, seconds_in_turns
from spheregen.pipeline import GenerationOptions, Pipeline

PERCENTILES = (50, 90, 99)
SPEED_STEPS = (1, 2, 4, 6, 8)


def sampling_speed(
    pipe: Pipeline, settings: Sequence[GenerationOptions], *, batch: int = 64, repeats: int = 3, singles: int = 20
) -> list[dict[str, Any]]:
    """Time sampling under several settings, taking turns.

    Args:
        batch: images of one call for the throughput.
        repeats: calls of each setting; the median counts.
        singles: images that are made one by one for the latency; 0: no latency.

    Returns:
        Of each setting its `steps`, the `batch`, `images_per_second` of the median call, `latency_ms` of one image
        alone (percentiles p50, p90, p99), and `peak_memory_mb` of such a batch, see `peak_memory`.
    """
    device = pipe.device
    calls = [functools.partial(_sample, pipe, options, batch) for options in settings]
    alone = [functools.partial(_sample, pipe, options, 1) for options in settings]
    memory = [peak_memory(call, device) for call in calls]  # the first call of a shape is slow
    for call in alone if singles else ():
        call()
    seconds = seconds_in_turns(calls, repeats, device)
    latencies = seconds_in_turns(alone, singles, device)
    return [
        {
            "steps": pipe.settings(options)["steps"],
            "batch": batch,
            "images_per_second": batch / statistics.median(seconds[place]),
            "latency_ms": {f"p{p}": 1000 * percentile(latencies[place], p) for p in PERCENTILES if singles},
            "peak_memory_mb": memory[place],
        }
        for place, options in enumerate(settings)
    ]


def cost_figures(pipe: Pipeline, options: GenerationOptions, *, batch: int = 64) -> dict[str, Any]:
    """Return parameters, operations by both conventions, and measured speed and memory at 1 to 8 steps."""
    cost = cost_of(pipe.model)
    settings = [with_steps(options, steps) for steps in SPEED_STEPS]
    by_steps = []
    for generation, speed in zip(settings, sampling_speed(pipe, settings, batch=batch), strict=True):
        chosen = pipe.settings(generation)
        counts = {"gflops": cost.sampling_gflops(chosen), "counted_gflops": cost.sampling_gflops(chosen, counted=True)}
        by_steps.append({**speed, **counts})
    return {
        **{
            key: {name: getattr(part, key) for name, part in cost.parts.items()}
            for key in ("params", "gflops", "counted_gflops")
        },
        "by_steps": by_steps,
        "device": device_name(pipe.device),
        "threads": torch.get_num_threads() if pipe.device.type == "cpu" else None,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "guidance": pipe.settings(options)["guidance"] if pipe.classes.count else pipe.model.unguided,
        "convention": "two operations a multiply-add; `gflops` leaves attention products out, as the published tables "
        "do, `counted_gflops` has them",
    }


def with_steps(options: GenerationOptions, steps: int) -> GenerationOptions:
    """Return the same settings with other steps; a schedule of numbers, which fits one number alone, is left out."""
    schedule = options.schedule
    if options.steps != steps and not (schedule is None or isinstance(schedule, str) or callable(schedule)):
        schedule = None
    return dataclasses.replace(options, steps=steps, schedule=schedule)


def _sample(pipe: Pipeline, options: GenerationOptions, count: int) -> None:
    for _ in pipe.stream(range(count), options=options):
        pass
