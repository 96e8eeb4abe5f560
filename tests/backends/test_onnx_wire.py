"""Taking defaults out of a serialized model: the same as with the `onnx` package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeinfer.backends.onnx_wire import without_initializers

NAMES = ("a", "b", "scale", "ünï", "x" * 300)


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 400)),
    st.sets(st.sampled_from(NAMES)),
    st.text(max_size=300),
)
def test_named_initializers_go_and_everything_else_stays(sizes, removed, text):
    arrays = {name: np.arange(size, dtype=np.float32) for name, size in sizes.items()}
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        doc_string=text,
    )
    model = helper.make_model(graph, producer_name=text)
    found = onnx.load_model_from_string(without_initializers(model.SerializeToString(), removed))
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in removed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    assert found == model


def test_what_is_no_protobuf_is_an_error():
    with pytest.raises(ValueError, match="wire type"):
        without_initializers(b"\x07", {"a"})
