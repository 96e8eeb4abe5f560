from __future__ import annotations

import json

import numpy as np
import pytest

from edgeinfer.errors import PreconditionError
from edgeinfer.model.model import Model
from edgeinfer.transforms import FixShapes, Pipeline, Simplify

TWO = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[N, L, 2] x, float[N, L, 2] z, float[?, 2] u) => (float[N, M] y, float[A, 2] v)
<int64[2] flat = {0, -1}>
{
    s = Add (x, z)
    y = Reshape (s, flat)
    v = Relu (u)
}
"""


def shapes(model: Model) -> dict[str, tuple[object, ...] | None]:
    return {spec.name: spec.shape for spec in (*model.signature.inputs, *model.signature.outputs)}


def test_input_binds_its_symbols_everywhere_and_outputs_follow(parse) -> None:
    after, report = FixShapes({"x": (4, 3, 2)}).apply(parse(TWO))
    assert shapes(after) == {"x": (4, 3, 2), "z": (4, 3, 2), "u": (None, 2), "y": (4, 6), "v": ("A", 2)}
    assert {entry.node for entry in report.applied} == {"x", "z", "y"}
    assert report.config == {"shapes": {"x": [4, 3, 2]}}


def test_symbols_and_inputs_mix_and_numpy_integers_count(parse) -> None:
    after, report = FixShapes({"N": np.int64(4), "u": (np.int32(5), 2), "x": (None, -1, 2)}).apply(parse(TWO))
    assert shapes(after) == {"x": (4, "L", 2), "z": (4, "L", 2), "u": (5, 2), "y": (4, "M"), "v": (5, 2)}
    assert report.notes == ("still symbolic: L",)
    json.dumps(report.config)


def test_a_symbol_is_remembered_across_files(parse, tmp_path) -> None:
    once = FixShapes({"N": 4}).apply(parse(TWO)).model
    loaded = Model.load(once.save(tmp_path / "m.onnx"))
    again, report = FixShapes({"N": 4}).apply(loaded)
    assert not report.modified
    assert report.skipped == (("N", "it has this shape already"),)
    assert again.digest == once.digest
    with pytest.raises(PreconditionError, match="Two sizes"):
        FixShapes({"N": 5}).apply(loaded)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"w": (1, 2)}, "no input 'w'"),
        ({"N": (1, 2)}, "no input 'N'"),
        ({"B": 1}, "'B', which is unknown"),
        ({"x": 1}, "'x', which is an input"),
        ({"x": (1, 2)}, "another rank"),
        ({"x": (1, 3, 5)}, "already fixed to another size"),
        ({"x": (1, 3, 2), "z": (2, 3, 2)}, "Two sizes"),
        ({"N": 2, "x": (1, 3, 2)}, "Two sizes"),
        ({"N": 0}, "positive"),
        ({"x": (-2, 3, 2)}, "positive"),
        ({"x": ("B", 3, 2)}, "another name"),
    ],
)
def test_what_does_not_fit_is_refused(parse, given, message) -> None:
    with pytest.raises(PreconditionError, match=message) as caught:
        FixShapes(given).apply(parse(TWO))
    assert caught.value.where.startswith("FixShapes")


def test_a_size_that_the_graph_cannot_take_is_refused(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 2] x) => (float[1, 2] y) <int64[2] s = {1, 2}> { r = Reshape (x, s)  y = Relu (r) }""")
    assert shapes(FixShapes({"N": 1}).apply(model).model)["y"] == (1, 2)
    with pytest.raises(PreconditionError, match="cannot take these shapes"):
        FixShapes({"N": 3}).apply(model)


def test_a_contradicted_output_is_refused(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 2] x) => (float[4] y) <int64[1] flat = {-1}> { y = Reshape (x, flat) }""")
    with pytest.raises(PreconditionError, match="another output shape"):
        FixShapes({"N": 3}).apply(model)


@pytest.mark.data
def test_fixing_lets_simplify_fold_shapes(models) -> None:
    model = Model.load(models("minilm_l6_fp16w"))
    fixed = Pipeline((FixShapes({"N": 1, "L": 32}), Simplify())).apply(model).model
    free = Simplify().apply(model).model
    count = [sum(node.op_type in ("Shape", "Gather", "Concat") for node in m.ir.graph) for m in (fixed, free)]
    assert count[0] < count[1]
    assert shapes(fixed)["sentence_embedding"] == (1, 384)
