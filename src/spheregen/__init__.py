"""SphereGen: image generators whose codes live on a high-dimensional sphere."""

from __future__ import annotations

from spheregen import interop, sampling, sphere

__version__ = "0.1.0"

__all__ = ["__version__", "interop", "sampling", "sphere"]
