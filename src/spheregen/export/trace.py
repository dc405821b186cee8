"""Graphs of a generator as programs of torch.export, and those as ONNX."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from spheregen.export.graphs import EXAMPLES, Graph

OPSET = 20
"""Of ONNX: the newest one that onnxruntime and its build for browsers both have all operators of."""


def traced(graph: Graph) -> ExportedProgram:
    """Return a graph as a program for any number of samples."""
    batch = Dim("batch", min=1)
    shapes = {name: {0: batch} if len(each) == EXAMPLES else None for name, each in graph.inputs.items()}
    with torch.no_grad(), _quiet():  # strict: code that asks for the length of a batch keeps it open
        program = torch.export.export(graph.module, (), dict(graph.inputs), dynamic_shapes=shapes, strict=True)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the files of this machine
    return program


def as_onnx(graph: Graph) -> Any:
    """Return a graph as an `onnx.ModelProto` that names inputs, outputs and the batch as `graphs` does."""
    program = traced(graph)
    with torch.no_grad(), _quiet(), _one_registry():
        made = torch.onnx.export(
            program,
            kwargs=dict(graph.inputs),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    body = model.graph
    del body.value_info[:]
    for node in body.node:  # where in our code it came from
        node.doc_string = ""
        del node.metadata_props[:]
    del body.metadata_props[:], model.metadata_props[:]
    for value in (*body.input, *body.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and dimensions[0].dim_param:
            dimensions[0].dim_param = "batch"
    return model


_registries: dict[int, Any] = {}


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Let torch read its translations to ONNX once, not anew for each graph: half of an export's time.

    They are no public part of torch; where they are not found, it reads them each time.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        own, read = ONNXRegistry.__dict__["from_torchlib"], ONNXRegistry.from_torchlib
    except (ImportError, KeyError):
        yield
        return

    def kept(opset_version: int) -> Any:
        if opset_version not in _registries:
            _registries[opset_version] = read(opset_version=opset_version)
        return _registries[opset_version]

    ONNXRegistry.from_torchlib = staticmethod(kept)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = own  # type: ignore[method-assign]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says of packages that it does not need here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
