"""SphereGen: image generators whose codes live on a high-dimensional sphere.

`sg.Pipeline` makes and edits pictures, `sg.load` gives the bare network, `sg.sampling` and `sg.sphere` are the method,
`sg.interop` reads published checkpoints. Everything is imported when it is first used, so `import spheregen` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spheregen import data, evaluation, family, interop, metrics, noise, restoration, sampling, sphere, training
    from spheregen.errors import SphereGenError
    from spheregen.pipeline import Pipeline, PipelineOutput, load

__version__ = "0.1.0"

_MODULES = (
    "data",
    "evaluation",
    "family",
    "interop",
    "metrics",
    "noise",
    "restoration",
    "sampling",
    "sphere",
    "training",
)
_OBJECTS = {
    "Pipeline": "spheregen.pipeline",
    "PipelineOutput": "spheregen.pipeline",
    "load": "spheregen.pipeline",
    "SphereGenError": "spheregen.errors",
}

__all__ = [
    "Pipeline",
    "PipelineOutput",
    "SphereGenError",
    "__version__",
    "data",
    "evaluation",
    "family",
    "interop",
    "load",
    "metrics",
    "noise",
    "restoration",
    "sampling",
    "sphere",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"spheregen.{name}")
    if name in _OBJECTS:
        value = getattr(importlib.import_module(_OBJECTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'spheregen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
