"""Fixtures of the backends' tests."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.backends import fake_tensorrt


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The FAKE TensorRT and CUDA; nothing of theirs may be left at the end."""
    made = fake_tensorrt.install(monkeypatch)
    yield made
    gc.collect()
    made.cuda.assert_nothing_left()


@pytest.fixture
def conv_qdq() -> Callable[..., onnx.ModelProto]:
    """A maker of a small quantized convolution for a dtype of activations."""
    return _conv_qdq


def _conv_qdq(activation: type[np.integer], relu: bool = False) -> onnx.ModelProto:
    """Return x → Q/DQ → Conv (int8 weights per channel, int32 bias) → Identity or Relu → Q/DQ → y."""
    rng = np.random.default_rng(0)
    scale, weight_scale = 0.02, 0.01
    zero = 128 if activation is np.uint8 else 0
    weights = {
        "s": np.float32(scale),
        "z": activation(zero),
        "w": rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8),
        "ws": np.full(16, weight_scale, np.float32),
        "wz": np.zeros(16, np.int8),
        "b": np.zeros(16, np.int32),
        "bs": np.full(16, scale * weight_scale, np.float32),
        "bz": np.zeros(16, np.int32),
        "ys": np.float32(0.1),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dq_weight", axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], name="dq_bias", axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu" if relu else "Identity", ["c"], ["r"], name="relu"),
        helper.make_node("QuantizeLinear", ["r", "ys", "z"], ["cq"], name="q_out"),
        helper.make_node("DequantizeLinear", ["cq", "ys", "z"], ["y"], name="dq_out"),
    ]
    graph = helper.make_graph(
        nodes,
        "conv_qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 16, 16])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
