from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeinfer.errors import PreconditionError
from edgeinfer.model.model import Model
from edgeinfer.transforms import QuantizeStatic, RetargetQDQ
from tests.quantization.qdq_models import (
    TARGETS,
    feeds,
    initializer,
    quantized,
    residual_net,
    run_plain,
    sqnr_db,
)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(TARGETS, 2)))
def test_every_dialect_becomes_every_other(source: str, target: str) -> None:
    model = residual_net()
    made = quantized(model, source, method="minmax")
    after = RetargetQDQ(target).apply(made).model
    wanted = quantized(model, target, method="minmax")
    feed = feeds(model, 1, seed=5)[0]
    assert sqnr_db(run_plain(model, feed), run_plain(after, feed)) > 25
    found = {str(value.name) for node in after.ir.graph for value in node.outputs}
    assert {str(value.name) for node in wanted.ir.graph for value in node.outputs} == found


def test_uint8_with_zero_point_zero_becomes_int8_without_saturation() -> None:
    made = quantized(residual_net(), "onnxruntime", method="minmax")
    after = RetargetQDQ("tensorrt").apply(made).model
    assert initializer(made, "relu1_out_zero_point") == 0
    ratio = initializer(after, "relu1_out_scale") / initializer(made, "relu1_out_scale")
    assert ratio == pytest.approx(255 / 127, rel=1e-5)


def test_weights_keep_their_integers_there_and_back() -> None:
    made = quantized(residual_net(), "onnxruntime")
    there = RetargetQDQ("tensorrt").apply(made).model
    back = RetargetQDQ("onnxruntime").apply(there).model
    for model in (there, back):
        for name in ("conv1_w_quantized", "conv3_w_quantized", "fc_w_quantized"):
            np.testing.assert_array_equal(initializer(model, name), initializer(made, name))
    feed = feeds(made, 1, seed=3)[0]
    np.testing.assert_allclose(run_plain(back, feed), run_plain(made, feed), atol=1e-4)


def test_twice_is_once() -> None:
    made = RetargetQDQ("tensorrt").apply(quantized(residual_net(), "onnxruntime")).model
    result = RetargetQDQ("tensorrt").apply(made)
    assert not result.report.modified
    assert "already" in result.report.skipped[0].reason


def test_keep_float_is_remembered() -> None:
    model = residual_net()
    made = QuantizeStatic(feeds(model), target="onnxruntime", keep_float=["conv2"]).apply(model).model
    after = RetargetQDQ("openvino").apply(made).model
    assert "conv2_w" in after.ir.graph.initializers


def test_a_strangers_model_keeps_the_ranges_of_its_quantizers() -> None:
    made = quantized(residual_net(), "onnxruntime", method="minmax")
    stranger = Model.load(made.to_bytes()).copy_ir()
    stranger.metadata_props.clear()
    after = RetargetQDQ("tensorrt").apply(Model.from_ir(stranger)).model
    with_notes = RetargetQDQ("tensorrt").apply(made).model
    np.testing.assert_allclose(
        initializer(after, "relu1_out_scale"), initializer(with_notes, "relu1_out_scale"), rtol=1e-2
    )


def test_a_float_model_is_refused() -> None:
    with pytest.raises(PreconditionError, match="no quantizers"):
        RetargetQDQ("tensorrt").apply(residual_net())
