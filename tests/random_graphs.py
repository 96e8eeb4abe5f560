"""Random ONNX graphs with inputs for them, for property-based tests of transforms.

`models()` draws a `RandomModel`. Its graph has layers with zero, shared and missing biases, batch
normalization, clips in a row, arithmetic of constants, moves of data, empty and scalar tensors, several
outputs, optional inputs, strings, odd dtypes, activations and normalizations written out, subgraphs,
functions, sequences, random operators (times 0, so that the result is known) and shapes of inner values that
were written down for another batch.

Values are kept near 1, so that a tolerance for the dtype means something. With `smooth=True` no operator
makes a small difference large (comparisons, rounding, sorting), so that float16 can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.random_graph_builder import BATCH, FLOATS, OPSETS, Builder, Step, Value
from tests.random_layers import (
    activation,
    affine,
    batch_norm,
    binary,
    casts,
    clips,
    computed_shape,
    constants,
    conv,
    dropout,
    gemm,
    matmul,
    move,
    random,
    reduce,
    select,
    softmax,
    unary,
)
from tests.random_structures import (
    attention,
    branch,
    einsum,
    function,
    loop,
    quantized,
    recurrent,
    scan,
    sequence,
)


class RandomModel(NamedTuple):
    """A model, inputs for it, and the steps that made it."""

    proto: onnx.ModelProto
    feeds: Mapping[str, np.ndarray]
    steps: tuple[str, ...]

    def without_hints(self) -> onnx.ModelProto:
        """Return the model without the shapes of inner values, which may be wrong."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.value_info[:]
        return proto


SMOOTH: tuple[Step, ...] = (
    unary, binary, affine, affine, clips, matmul, matmul, gemm, conv, conv, batch_norm, batch_norm, move,
    move, computed_shape, constants, constants, reduce, casts, dropout, random, softmax, activation, branch,
    loop, recurrent, quantized, function, scan, sequence, einsum, attention, attention,
)  # fmt: skip


@st.composite
def models(draw: st.DrawFn, *, smooth: bool = False, most: int = 9) -> RandomModel:
    """Draw a model and inputs.

    Args:
        draw: Of Hypothesis.
        smooth: float32 only, and no operator that makes a small difference large.
        most: The most steps; a step is one to a dozen nodes.
    """
    dtype = np.float32 if smooth else FLOATS[draw(st.sampled_from(("float32",) * 4 + ("float64", "float16")))]
    b = Builder(draw, dtype, draw(st.sampled_from(OPSETS)))
    shapes = {"x": (BATCH, 3, 4, 4), "v": (BATCH, 3), "w": (3,), "t": ()}
    for name, shape in shapes.items():
        b.add(name, shape, name in "xv")
    steps = draw(
        st.lists(st.sampled_from(SMOOTH if smooth else (*SMOOTH, select)), min_size=1, max_size=most)
    )
    for step in steps:
        step(b)
    infos = [helper.make_tensor_value_info(n, b.onnx_type, _dims(b.values[i])) for i, n in enumerate(shapes)]
    infos.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    made = b.values[len(shapes) :]
    wanted = {made[-1], *draw(st.lists(st.sampled_from(made), max_size=2))} if made else {b.values[0]}
    outputs = []
    for value in sorted(wanted):
        name = value.name if value.name not in shapes else b.op("Identity", value.name)[0]
        dims = _dims(value) if draw(st.booleans()) else [None] * len(value.shape)
        outputs.append(helper.make_tensor_value_info(name, b.onnx_type, dims))
    feeds: dict[str, np.ndarray] = {
        name: b.rng.standard_normal(shape).astype(b.dtype) for name, shape in shapes.items()
    }
    feeds["flag"] = np.array(draw(st.booleans()))
    if draw(st.integers(0, 4)) == 0:
        text = onnx.TensorProto.STRING
        infos.append(helper.make_tensor_value_info("s", text, ["N"]))
        outputs.append(helper.make_tensor_value_info(b.op("Identity", "s")[0], text, ["N"]))
        feeds["s"] = np.array(["a", "é b"], object)
    stale = draw(st.integers(0, 3)) == 0
    given = {info.name for info in outputs}
    hints = [
        helper.make_tensor_value_info(v.name, b.onnx_type, [1, *v.shape[1:]])
        for v in made
        if stale and v.batch and v.name not in given
    ]
    graph = helper.make_graph(b.nodes, "random", infos, outputs, b.initializers, value_info=hints)
    imports = [helper.make_opsetid("", b.opset), *([helper.make_opsetid("local", 1)] if b.functions else [])]
    proto = helper.make_model(
        graph, opset_imports=imports, ir_version=10 if b.opset == 21 else 8, functions=b.functions
    )
    return RandomModel(proto, feeds, tuple(step.__name__ for step in steps))


def _dims(value: Value) -> list[int | str]:
    return ["N", *value.shape[1:]] if value.batch else list(value.shape)
