"""Models that run anywhere: as ONNX with a runner that needs no torch, as programs of torch, as a page in the browser.

`Runner` makes images from an exported folder with numpy and onnxruntime alone; `export_model` writes such folders.
Names are imported when they are first used, so that the runner loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spheregen.export.folder import Exported, export_model
    from spheregen.export.runner import Runner, RunnerOutput

_HOMES = {"Exported": "folder", "Runner": "runner", "RunnerOutput": "runner", "export_model": "folder"}

__all__ = ["Exported", "Runner", "RunnerOutput", "export_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
