"""Exports in tests: silent, and each graph is traced once in a run, since that takes seconds even of a tiny model."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

import pytest
import torch

from spheregen.export import folder
from spheregen.export.graphs import Graph
from spheregen.export.trace import as_onnx
from spheregen.files import atomic_path


@pytest.fixture(autouse=True)
def _no_trace_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop torch from writing a log for every handler that listens; nobody reads it here."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep graphs for the other tests and workers of this run."""
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    kept.mkdir(exist_ok=True)

    def kept_or_traced(graph: Graph) -> Any:
        onnx = pytest.importorskip("onnx", reason="exports need onnx")
        path = kept / f"{behaviour(graph)}.onnx"
        if not path.is_file():
            with atomic_path(path) as part:
                part.write_bytes(as_onnx(graph).SerializeToString())
        return onnx.ModelProto.FromString(path.read_bytes())

    monkeypatch.setattr(folder, "as_onnx", kept_or_traced)


def behaviour(graph: Graph) -> str:
    """Return a name of what a graph is built of and what it makes of its examples, bit for bit."""
    with torch.no_grad():
        made = graph.module(**graph.inputs)
    found = hashlib.sha256(repr((graph.module, graph.outputs, [*graph.inputs])).encode())
    for each in (*graph.inputs.values(), *(made if isinstance(made, tuple) else (made,))):
        found.update(str(each.shape).encode() + each.numpy().tobytes())
    return found.hexdigest()
