"""Small weights: each channel is off by half a step of its scale at most, and runtimes read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spheregen.export.weights import compress

onnx = pytest.importorskip("onnx", reason="exports need onnx")
runtime = pytest.importorskip("onnxruntime", reason="exports run by onnxruntime")
rng = np.random.default_rng(0)
WEIGHTS = {
    "Conv": (rng.normal(size=(16, 4, 3, 3)), (1, 4, 8, 8), 0),
    "ConvTranspose": (rng.normal(size=(4, 16, 3, 3)), (1, 4, 8, 8), 1),
    "MatMul": (rng.normal(size=(24, 16)), (2, 24), 1),
    "Gemm": (rng.normal(size=(16, 24)), (2, 24), 0),
}
"""Of an operator: weights, the shape of its input, and the axis of output channels. Gemm has transB."""


def model_of(kind: str) -> Any:
    """A graph of one operator, whose channels have weights of very different sizes."""
    weight, shape, axis = WEIGHTS[kind]
    sizes = np.logspace(-3, 1, weight.shape[axis]).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    options = {"transB": 1} if kind == "Gemm" else {}
    node = onnx.helper.make_node(kind, ["x", "w"], ["y"], **options)
    value = onnx.helper.make_tensor_value_info
    ends = [value("x", 1, shape)], [value("y", 1, None)]
    tensor = onnx.numpy_helper.from_array((weight * sizes).astype(np.float32), "w")
    graph = onnx.helper.make_graph([node], "graph", *ends, initializer=[tensor])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def run(model: Any, *, weight: bool = False) -> Any:
    if weight:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.append(onnx.helper.make_tensor_value_info("w", 1, None))
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=session.get_inputs()[0].shape).astype(np.float32)
    return session.run(None, {"x": x})[-1]


@pytest.mark.parametrize("kind", WEIGHTS)
def test_int8_keeps_each_channel_to_half_a_step(kind: str) -> None:
    model, axis = model_of(kind), WEIGHTS[kind][2]
    before = onnx.numpy_helper.to_array(model.graph.initializer[0])
    compress(model, "int8")
    assert max(model.graph.initializer, key=lambda each: len(each.raw_data)).data_type == onnx.TensorProto.INT8
    others = tuple(each for each in range(before.ndim) if each != axis)
    step = np.abs(before).max(axis=others, keepdims=True) / 127
    assert (np.abs(run(model, weight=True) - before) <= step * 0.5001).all()
    assert np.abs(run(model) - run(model_of(kind))).max() < 0.05 * np.abs(run(model_of(kind))).max()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_float16_halves_the_weights(kind: str) -> None:
    model = model_of(kind)
    whole, before = model.ByteSize(), onnx.numpy_helper.to_array(model.graph.initializer[0])
    compress(model, "float16")
    assert model.ByteSize() < 0.6 * whole
    np.testing.assert_allclose(run(model, weight=True), before, rtol=1e-3, atol=1e-7)


def test_float32_changes_nothing() -> None:
    model = model_of("Conv")
    before = model.SerializeToString()
    compress(model, "float32")
    assert model.SerializeToString() == before
