"""The same service on Ray Serve, for more than one machine: replicas behind one address.

    serve run spheregen.serving.serve_ray:build models=digits replicas=2

Every replica is the application of `spheregen serve` with an engine of its own, so requests that a replica gets
together are batched. Ray starts replicas, replaces those that die, and scales.
Tokens come from the variable that `spheregen serve` reads. Metrics of a replica are in Ray's own dashboard and at
`/metrics` of whichever replica answers.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from spheregen.serving.server import load_pipelines
from spheregen.serving.service import create_app
from spheregen.serving.settings import Settings, tokens_of_environment

QUEUED = 64
"""Requests that a replica works on at a time; the rest wait in Ray's router."""


def build(given: dict[str, Any]) -> serve.Application:
    """Return the application that `serve run` starts.

    Args:
        given: `models` with commas between them; `replicas` (1); `gpus` of each replica (0); `cpus` of each (1), which
            are its threads; `device` (auto).

    Raises:
        ConfigError: no model.
    """
    known: dict[str, Any] = {"replicas": 1, "gpus": 0, "cpus": 1, "device": "auto", "models": ""} | dict(given)
    models = tuple(name for name in str(known["models"]).split(",") if name)
    settings = Settings(
        models=models,
        device=str(known["device"]),
        threads=max(1, int(known["cpus"])),
        host="0.0.0.0",
        tokens=tokens_of_environment(),
    )

    def application() -> Any:  # made in each replica: models do not travel
        return create_app(settings, load_pipelines(settings))

    deployment: Any = serve.deployment(
        serve.ingress(application)(),
        name="spheregen",
        num_replicas=int(known["replicas"]),
        max_ongoing_requests=QUEUED,
        ray_actor_options={"num_cpus": float(known["cpus"]), "num_gpus": float(known["gpus"])},
    )
    bound: serve.Application = deployment.bind()
    return bound
