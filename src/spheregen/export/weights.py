"""Smaller weights of an ONNX graph: float16, or int8 with a scale for each output channel.

Weights alone become smaller; the arithmetic stays float32, so that every runtime computes the same on every machine.
Runtimes that fold constants, as ours do, are as fast as with float32 weights.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Precision = Literal["float32", "float16", "int8"]
_SMALL = 256
"""Initialisers of fewer numbers stay as they are."""


def compress(model: Any, precision: Precision) -> None:
    """Make the weights of an `onnx.ModelProto` smaller, in place.

    int8 is of the weights of products and convolutions, symmetric, `scale = max |w| / 127` for each output channel;
    other large tensors become float16.

    Args:
        model: opset 13 or later, all its tensors inside.
        precision: `float32` leaves it as it is.
    """
    if precision == "float32":
        return
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    axes = {name: axis for node in graph.node for name, axis in _channels(node) if precision == "int8"}
    made = []
    for tensor in list(graph.initializer):
        weight = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or weight.size < _SMALL:
            continue
        name, small = tensor.name, f"{tensor.name}_{precision}"
        graph.initializer.remove(tensor)
        if name in axes and weight.ndim > 1:
            axis = axes[name] % weight.ndim
            others = tuple(each for each in range(weight.ndim) if each != axis)
            largest = np.abs(weight).max(axis=others, keepdims=True)
            scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
            whole = np.rint(weight / scale).astype(np.int8)
            scales = numpy_helper.from_array(scale.reshape(-1), f"{name}_scale")
            graph.initializer.extend([numpy_helper.from_array(whole, small), scales])
            made.append(helper.make_node("DequantizeLinear", [small, scales.name], [name], axis=axis))
        else:
            half = np.clip(weight, -65504, 65504).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(half, small))
            made.append(helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT))
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made, *before])


def _channels(node: Any) -> list[tuple[str, int]]:
    """Return the weight of a node and its axis of output channels, if it may be int8."""
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm", "Gather"):
        return []
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": 0 if transposed else 1, "Gather": 0}[node.op_type]
    return [(node.input[0 if node.op_type == "Gather" else 1], axis)]
