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

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

BATCH = 2
FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
OPSETS = (13, 17, 21)


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


class Value(NamedTuple):
    """A tensor in the making; `batch` when its first axis is N."""

    name: str
    shape: tuple[int, ...]
    batch: bool


class Builder:
    """Grows one graph."""

    def __init__(self, draw: st.DrawFn, dtype: type, opset: int, names: list[int] | None = None) -> None:
        self.draw = draw
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(draw(st.integers(0, 1000)))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.values: list[Value] = []
        self._names = names if names is not None else [0]
        self._stored: dict[bytes, str] = {}

    @property
    def onnx_type(self) -> int:
        return helper.np_dtype_to_tensor_dtype(self.dtype)

    def name(self, stem: str) -> str:
        self._names[0] += 1
        return f"{stem}{self._names[0]}"

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def value(self, rank: int | None = None) -> Value | None:
        fitting = [v for v in self.values if rank is None or len(v.shape) == rank]
        return self.pick(fitting) if fitting else None

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        names = [self.name("t") for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, list(inputs), names, self.name(f"{kind}_"), domain=domain, **attributes)
        )
        return names

    def reduce(self, kind: str, name: str, axis: int, keepdims: int = 1) -> list[str]:
        """Reduce along an axis, which was an attribute before opset 18 (13 for sums)."""
        if self.opset >= 18 or kind == "ReduceSum":
            return self.op(kind, name, self.ints(axis), keepdims=keepdims)
        return self.op(kind, name, axes=[axis], keepdims=keepdims)

    def inner(self, *values: Value) -> Builder:
        """Return a builder of a subgraph that sees some values of this one."""
        inner = Builder(self.draw, self.dtype.type, self.opset, self._names)
        inner.values = list(values)
        return inner

    def add(self, name: str, shape: tuple[int, ...], batch: bool) -> Value:
        value = Value(name, tuple(shape), batch)
        self.values.append(value)
        return value

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Store an array as an initializer, a Constant, or an equal initializer that is there already."""
        array = np.asarray(array, dtype or self.dtype)
        key = array.tobytes() + str((array.shape, array.dtype)).encode()
        if key in self._stored and self.draw(st.booleans()):
            return self._stored[key]
        tensor = numpy_helper.from_array(array, self.name("c"))
        if self.draw(st.integers(0, 3)) == 0:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], self.name("k"), value=tensor))
        else:
            self.initializers.append(tensor)
            self._stored[key] = tensor.name
        return tensor.name

    def weight(self, *shape: int, fan: int) -> str:
        return self.constant(self.rng.standard_normal(shape) / math.sqrt(fan))

    def vector(self, *shape: int) -> str:
        """A bias or scale: zeros, ones, or numbers near 1."""
        kind = self.pick(("zeros", "ones", "numbers"))
        if kind == "numbers":
            return self.constant(np.round(self.rng.uniform(0.5, 1.5, shape), 2))
        return self.constant(np.zeros(shape) if kind == "zeros" else np.ones(shape))

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64), np.int64)


Step = Callable[[Builder], None]


def unary(b: Builder) -> None:
    v = b.value()
    kinds = ["Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Softsign", "LeakyRelu", "Erf"]
    kinds = kinds[:6] if b.dtype == np.float64 else kinds
    b.add(*b.op(b.pick(kinds), v.name), v.shape, v.batch)


def binary(b: Builder) -> None:
    v = b.value()
    others = [o for o in b.values if o.shape == v.shape and o.batch == v.batch]
    b.add(*b.op(b.pick(("Add", "Sub", "Max", "Min")), v.name, b.pick(others).name), v.shape, v.batch)


def affine(b: Builder) -> None:
    """Arithmetic with a scalar, with one number a channel, or that does nothing."""
    v = b.value()
    shapes: list[tuple[int, ...]] = [(), (1,)] if v.shape else [()]
    if len(v.shape) > 1:
        shapes += [v.shape[-1:], (v.shape[1], *[1] * (len(v.shape) - 2))]
    kind = b.pick(("Add", "Sub", "Mul", "Div"))
    shape = b.pick(shapes)
    other = b.vector(*shape) if kind != "Div" else b.constant(b.rng.uniform(0.5, 1.5, shape))
    pair = (v.name, other) if kind == "Div" or b.draw(st.booleans()) else (other, v.name)
    b.add(*b.op(kind, *pair), v.shape, v.batch)


def clips(b: Builder) -> None:
    v = b.value()
    name = v.name
    for _ in range(b.draw(st.integers(1, 3))):
        if b.draw(st.integers(0, 2)) == 0:
            (name,) = b.op("Relu", name)
        else:
            low, high = (b.pick((None, -1.0, -0.5, 0.0, 0.25, 1.0)) for _ in range(2))
            bounds = ["" if end is None else b.constant(end) for end in (low, high)]
            (name,) = b.op("Clip", name, *bounds)
    b.add(name, v.shape, v.batch)


def matmul(b: Builder) -> None:
    v = b.value()
    if len(v.shape) < 2 or not v.shape[-1]:
        return
    inputs, outputs = v.shape[-1], b.pick((3, 4))
    weight = b.weight(inputs, outputs, fan=inputs)
    (name,) = b.op("MatMul", v.name, weight)
    if b.draw(st.booleans()):
        (name,) = b.op("Add", name, b.vector(outputs))
    b.add(name, (*v.shape[:-1], outputs), v.batch)


def square(b: Builder) -> None:
    """A product that keeps the shape."""
    v = b.value()
    if len(v.shape) > 1 and v.shape[-1]:
        name = b.op("MatMul", v.name, b.weight(v.shape[-1], v.shape[-1], fan=v.shape[-1]))
        b.add(*name, v.shape, v.batch)


def gemm(b: Builder) -> None:
    v = b.value(2)
    if v is None or not v.shape[1]:
        return
    outputs, turned = 4, b.draw(st.integers(0, 1))
    shape = (outputs, v.shape[1]) if turned else (v.shape[1], outputs)
    bias = [b.vector(outputs)] if b.draw(st.booleans()) else []
    attributes = b.pick(({}, {"alpha": 0.5, "beta": 2.0}))
    name = b.op("Gemm", v.name, b.weight(*shape, fan=v.shape[1]), *bias, transB=turned, **attributes)
    b.add(*name, (v.shape[0], outputs), v.batch)


def conv(b: Builder) -> None:
    v = b.value(4)
    if v is None or b.dtype == np.float64 or not all(v.shape):
        return
    n, c, h, w = v.shape
    name = v.name
    if b.draw(st.integers(0, 3)) == 0:
        (name,) = b.op("Pad", name, b.ints(0, 0, 1, 1, 0, 0, 1, 1))
        h, w = h + 2, w + 2
    group = b.pick((1, c))
    kind = b.pick(("Conv", "Conv", "ConvTranspose"))
    bias = b.pick(("none", "vector"))
    channels = c if group == c else b.pick((c, 4))
    shape = (channels, c // group, 3, 3) if kind == "Conv" else (c, channels // group, 3, 3)
    inputs = [name, b.weight(*shape, fan=9 * c // group), *([b.vector(channels)] if bias == "vector" else [])]
    b.add(*b.op(kind, *inputs, pads=[1, 1, 1, 1], group=group), (n, channels, h, w), v.batch)


def batch_norm(b: Builder) -> None:
    v = b.value(4)
    if v is None or not all(v.shape):
        return
    training = b.opset >= 14 and b.dtype == np.float32 and b.draw(st.integers(0, 3)) == 0
    statistics = b.constant(np.full(v.shape[1], 0.75)), b.constant(np.full(v.shape[1], 0.75))
    inputs = (v.name, b.vector(v.shape[1]), b.vector(v.shape[1]), *statistics)
    mode = {"training_mode": 1} if training else {}
    names = b.op("BatchNormalization", *inputs, outputs=3 if training else 1, **mode)
    b.add(names[0], v.shape, v.batch)


def move(b: Builder) -> None:
    v = b.value()
    rank = len(v.shape)
    kind = b.pick(
        ("Unsqueeze", "Transpose", "Reshape", "Slice", "Concat", "Empty", "Split", "Gather", "Tile", "Flat")
    )
    first = int(v.batch)  # axes from here on are free
    if kind == "Unsqueeze" and rank < 4:
        b.add(*b.op("Unsqueeze", v.name, b.ints(rank)), (*v.shape, 1), v.batch)
    elif kind == "Transpose" and rank > 1:
        perm = [*range(first), *b.draw(st.permutations(range(first, rank)))]
        (name,) = b.op("Transpose", v.name, perm=perm)
        shape = tuple(v.shape[axis] for axis in perm)
        if b.draw(st.booleans()):
            back = [perm.index(axis) for axis in range(rank)]
            (name,), shape = b.op("Transpose", name, perm=back), v.shape
        b.add(name, shape, v.batch)
    elif kind == "Reshape" and rank > first:
        (name,) = b.op("Reshape", v.name, b.ints(*[0] * first, -1))
        flat = math.prod(v.shape[first:])
        if flat:
            b.add(name, (*v.shape[:first], flat), v.batch)
    elif kind == "Slice" and rank > first:
        axis = b.draw(st.integers(first, rank - 1))
        start = b.draw(st.integers(0, v.shape[axis]))
        name = b.op("Slice", v.name, b.ints(start), b.ints(2**31), b.ints(axis), b.ints(1))
        size = v.shape[axis] - start
        if size:  # an empty result is of use in Concat only
            b.add(*name, (*v.shape[:axis], size, *v.shape[axis + 1 :]), v.batch)
    elif kind in ("Concat", "Empty") and rank > first:
        axis = b.draw(st.integers(first, rank - 1))
        shape = list(v.shape)
        other = v.name
        if kind == "Empty" and not v.batch:
            other, shape[axis] = b.constant(np.zeros([0 if i == axis else d for i, d in enumerate(shape)])), 0
        total = v.shape[axis] + shape[axis]
        if total <= 16:
            name = b.op("Concat", v.name, other, axis=axis)
            b.add(*name, (*v.shape[:axis], total, *v.shape[axis + 1 :]), v.batch)
    elif kind == "Split" and rank > first and v.shape[-1] > 1:
        sizes = (1, v.shape[-1] - 1)
        for name, size in zip(b.op("Split", v.name, b.ints(*sizes), outputs=2, axis=-1), sizes, strict=True):
            b.add(name, (*v.shape[:-1], size), v.batch)
    elif kind == "Gather" and rank > first and v.shape[-1]:
        at = b.constant(np.array(b.draw(st.integers(-v.shape[-1], v.shape[-1] - 1))), np.int64)
        b.add(*b.op("Gather", v.name, at, axis=rank - 1), v.shape[:-1], v.batch)
    elif kind == "Tile" and rank > first and v.shape[-1] <= 4:
        repeats = b.ints(*[1] * (rank - 1), 2)
        b.add(*b.op("Tile", v.name, repeats), (*v.shape[:-1], 2 * v.shape[-1]), v.batch)
    elif kind == "Flat" and rank > 1:
        b.add(*b.op("Flatten", v.name, axis=1), (v.shape[0], math.prod(v.shape[1:])), v.batch)


def computed_shape(b: Builder) -> None:
    """A Reshape to a shape that the graph computes."""
    v = b.value()
    if len(v.shape) < 2:
        return
    (shape,) = b.op("Shape", v.name)
    (first,) = b.op("Gather", shape, b.ints(0))
    (target,) = b.op("Concat", first, b.ints(-1), axis=0)
    rest = math.prod(v.shape[1:])
    if all(v.shape):
        b.add(*b.op("Reshape", v.name, target), (v.shape[0], rest), v.batch)


def constants(b: Builder) -> None:
    """Arithmetic of constants, joined to a value."""
    v = b.value()
    kind = b.pick(("float", "product", "integer", "move", "half", "bfloat", "function", "reduce"))
    if kind == "float":
        (name,) = b.op(b.pick(("Add", "Sub", "Mul", "Div", "Pow")), b.constant(0.75), b.constant(0.5))
    elif kind == "product":
        left, right = b.weight(1, 8, fan=8), b.weight(8, 1, fan=8)
        (name,) = b.op("Reshape", *b.op("MatMul", left, right), b.ints())
    elif kind == "integer":
        pair = [b.constant(b.draw(st.integers(low, 9)), np.int64) for low in (-9, 1)]
        if b.draw(st.booleans()):  # division of negative numbers
            pair[1] = b.constant(-2, np.int64)
        (number,) = b.op(b.pick(("Add", "Sub", "Mul", "Div", "Mod")), *pair)
        (name,) = b.op("Mul", *b.op("Cast", number, to=b.onnx_type), b.constant(0.125))
    elif kind == "move":
        (name,) = b.op("Gather", b.constant(b.rng.standard_normal((2, 3))), b.constant(1, np.int64))
        (name,) = b.op("ReduceMax", name, keepdims=0)
    elif kind == "function":
        (name,) = b.op(b.pick(("Exp", "Sqrt", "Log", "Sin", "Tanh", "Reciprocal")), b.constant(0.75))
    elif kind == "reduce":
        (name,) = b.reduce(b.pick(("ReduceSum", "ReduceMean")), b.constant([0.25, 0.5]), 0, 0)
    else:
        odd = np.float16 if kind == "half" else ml_dtypes.bfloat16
        (name,) = b.op("Cast", b.constant(np.array(0.3, odd), odd), to=b.onnx_type)
    b.add(*b.op(b.pick(("Add", "Mul")), v.name, name), v.shape, v.batch)


def reduce(b: Builder) -> None:
    v = b.value()
    if not v.shape or not all(v.shape):
        return
    kind = b.pick(("ReduceMean", "ReduceMax", "ReduceMin"))
    if b.draw(st.integers(0, 3)) == 0:
        b.add(*b.op(kind, v.name, keepdims=0), (), False)
    elif len(v.shape) > int(v.batch):
        b.add(*b.reduce(kind, v.name, -1), (*v.shape[:-1], 1), v.batch)


def casts(b: Builder) -> None:
    v = b.value()
    through = b.pick((1, 11) if b.dtype != np.float16 else (1, 10))
    (name,) = b.op("Cast", v.name, to=through)
    b.add(*b.op("Cast", name, to=b.onnx_type), v.shape, v.batch)


def dropout(b: Builder) -> None:
    v = b.value()
    extra = b.pick(([], [b.constant(0.5)], [b.constant(0.5), b.constant(False, np.bool_)]))
    names = b.op("Dropout", v.name, *extra, outputs=b.pick((1, 2)))
    b.add(names[0], v.shape, v.batch)


def random(b: Builder) -> None:
    """Random numbers of constants and of values, times 0."""
    v = b.value()
    if b.dtype != np.float32:
        return
    kind = b.pick(("Bernoulli", "RandomNormalLike", "RandomUniform", "Dropout"))
    if kind == "RandomUniform":
        (name,) = b.op(kind, shape=[1])
    elif kind == "Dropout":
        (name,) = b.op(kind, b.constant([1.0]), b.constant(0.5), b.constant(True, np.bool_))
    else:
        (name,) = b.op(kind, b.constant([0.5]))
    (nothing,) = b.op("Mul", name, b.constant(0.0))
    if v.shape:
        b.add(*b.op("Add", v.name, nothing), v.shape, v.batch)


def softmax(b: Builder) -> None:
    """Softmax, of scores that a mask may exclude a whole row of."""
    v = b.value()
    if not v.shape or not all(v.shape) or (v.batch and len(v.shape) == 1):
        return
    name = v.name
    if b.dtype == np.float32 and b.draw(st.booleans()):
        row = np.where(b.rng.random(v.shape[-1]) < 0.7, 0.0, b.pick((-3.4e38, -1e9)))
        (name,) = b.op("Add", name, b.constant(row))
    b.add(*b.op("Softmax", name, axis=-1), v.shape, v.batch)


def activation(b: Builder) -> None:
    """An activation or normalization written out."""
    v = b.value()
    kind = b.pick(("gelu", "tanh", "silu", "hardswish", "hardsigmoid", "softplus", "norm"))
    kind = "silu" if b.dtype == np.float64 else kind
    x, half, one = v.name, b.constant(0.5), b.constant(1.0)
    if kind == "gelu":
        (erf,) = b.op("Erf", *b.op("Div", x, b.constant(math.sqrt(2))))
        names = b.op("Mul", *b.op("Mul", x, *b.op("Add", erf, one)), half)
    elif kind == "tanh":
        (cube,) = b.op("Mul", *b.op("Pow", x, b.constant(3.0)), b.constant(0.044715))
        (inner,) = b.op("Mul", *b.op("Add", x, cube), b.constant(0.79788456))
        names = b.op("Mul", *b.op("Mul", x, half), *b.op("Add", *b.op("Tanh", inner), one))
    elif kind == "silu":
        names = b.op("Mul", x, *b.op("Sigmoid", x))
    elif kind in ("hardswish", "hardsigmoid"):
        (clip,) = b.op("Clip", *b.op("Add", x, b.constant(3.0)), b.constant(0.0), b.constant(6.0))
        names = b.op("Div", *(b.op("Mul", x, clip) if kind == "hardswish" else [clip]), b.constant(6.0))
    elif kind == "softplus":
        names = b.op("Log", *b.op("Add", *b.op("Exp", x), one))
    elif v.shape and v.shape[-1] > 1 and not (v.batch and len(v.shape) == 1):
        (centered,) = b.op("Sub", x, *b.reduce("ReduceMean", x, -1))
        (variance,) = b.reduce("ReduceMean", *b.op("Pow", centered, b.constant(2.0)), -1)
        (root,) = b.op("Sqrt", *b.op("Add", variance, b.constant(0.1)))
        names = b.op("Mul", *b.op("Div", centered, root), b.vector(v.shape[-1]))
    else:
        return
    b.add(*names, v.shape, v.batch)


def branch(b: Builder) -> None:
    """An If, of a condition that is an input or constant; the branches read values around them."""
    v = b.value()
    condition = b.pick(("flag", b.constant(True, np.bool_)))
    graphs = {}
    for side in ("then_branch", "else_branch"):
        inner = b.inner(v)
        for step in b.draw(st.lists(st.sampled_from((*INNER, branch)), max_size=2)):
            step(inner)
        (name,) = inner.op("Identity", inner.values[-1].name)
        graphs[side] = helper.make_graph(
            inner.nodes,
            side,
            [],
            [helper.make_tensor_value_info(name, b.onnx_type, None)],
            inner.initializers,
        )
    b.add(*b.op("If", condition, **graphs), v.shape, v.batch)


def loop(b: Builder) -> None:
    v = b.value()
    inner = b.inner()
    count, going, state, still = (inner.name(stem) for stem in ("i", "c", "s", "d"))
    inner.values = [Value(state, v.shape, v.batch)]
    inner.nodes.append(helper.make_node("Identity", [going], [still], inner.name("k")))
    for step in b.draw(st.lists(st.sampled_from(INNER), min_size=1, max_size=2)):
        step(inner)
    (name,) = inner.op("Tanh", inner.values[-1].name)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        inner.nodes, "body",
        [info(count, 7, []), info(going, 9, []), info(state, b.onnx_type, None)],
        [info(still, 9, []), info(name, b.onnx_type, None)], inner.initializers,
    )  # fmt: skip
    inputs = (b.constant(2, np.int64), b.constant(True, np.bool_), v.name)
    b.add(*b.op("Loop", *inputs, body=body), v.shape, v.batch)


def scan(b: Builder) -> None:
    """A running sum along the last axis."""
    v = b.value(2)
    if v is None or not all(v.shape):
        return
    inner, info = b.inner(), helper.make_tensor_value_info
    state, column, copy = (inner.name(stem) for stem in "sco")
    (total,) = inner.op("Add", state, column)
    (total,) = inner.op("Mul", total, inner.constant(0.5))
    inner.nodes.append(helper.make_node("Identity", [total], [copy], inner.name("k")))
    ends = [[info(name, b.onnx_type, None) for name in names] for names in ((state, column), (total, copy))]
    body = helper.make_graph(inner.nodes, "body", *ends, inner.initializers)
    (start,) = b.reduce("ReduceMean", v.name, -1, 0)
    names = b.op(
        "Scan", start, v.name, outputs=2, body=body, num_scan_inputs=1,
        scan_input_axes=[1], scan_output_axes=[1],
    )  # fmt: skip
    b.add(names[1], v.shape, v.batch)


def sequence(b: Builder) -> None:
    """Values through a sequence."""
    v = b.value()
    if b.draw(st.booleans()) and v.shape and v.shape[-1] and len(v.shape) > int(v.batch):
        if b.draw(st.booleans()):
            size = b.constant(b.pick((1, 2)), np.int64)
            names = b.op("ConcatFromSequence", *b.op("SplitToSequence", v.name, size, axis=-1), axis=-1)
        else:
            keep = b.pick((0, 1))
            (made,) = b.op("SplitToSequence", v.name, axis=-1, keepdims=keep)
            names = b.op("ConcatFromSequence", made, axis=-1, new_axis=1 - keep)
        b.add(*names, v.shape, v.batch)
        return
    (made,) = b.op("SequenceConstruct", v.name, *b.op("Neg", v.name))
    b.add(*b.op("SequenceAt", made, b.constant(b.pick((0, 1, -1)), np.int64)), v.shape, v.batch)


def einsum(b: Builder) -> None:
    v = b.value(2)
    if v is not None and v.shape[1] and b.dtype == np.float32:
        weight = b.weight(v.shape[1], 2, 3, fan=v.shape[1])
        b.add(*b.op("Einsum", v.name, weight, equation="nd,dhe->nhe"), (v.shape[0], 2, 3), v.batch)


def attention(b: Builder) -> None:
    v = b.value(3)
    if v is None or b.dtype != np.float32 or not all(v.shape):
        return
    size = v.shape[-1]
    q, k, u = (b.op("MatMul", v.name, b.weight(size, 4, fan=size))[0] for _ in range(3))
    (scores,) = b.op("MatMul", q, *b.op("Transpose", k, perm=[0, 2, 1]))
    (scores,) = b.op("Div", scores, b.constant(2.0))
    if b.draw(st.booleans()):  # a row of the batch in which nothing counts
        (less,) = b.op("Sub", b.constant(1.0), b.constant(np.array([1.0, 0.0]).reshape(2, 1, 1)))
        mask = b.op("Mul", less, b.constant(b.pick((-3.4e38, -1e9, -1e4))))
        if v.shape[0] == BATCH:
            (scores,) = b.op("Add", scores, *mask)
    b.add(*b.op("MatMul", *b.op("Softmax", scores, axis=-1), u), (*v.shape[:-1], 4), v.batch)


def recurrent(b: Builder) -> None:
    """An LSTM or GRU without bias and lengths, of which the last state alone is used."""
    v = b.value(3)
    if v is None or b.dtype != np.float32 or not all(v.shape):
        return
    size, hidden = v.shape[-1], 2
    kind, gates = b.pick((("LSTM", 4), ("GRU", 3)))
    weights = b.weight(1, gates * hidden, size, fan=size), b.weight(1, gates * hidden, hidden, fan=hidden)
    names = [b.name("t")]
    node = helper.make_node(kind, [v.name, *weights], ["", *names], b.name(kind), hidden_size=hidden)
    b.nodes.append(node)
    b.add(*names, (1, v.shape[1], hidden), False)


def quantized(b: Builder) -> None:
    """A constant behind a DequantizeLinear, of int8 or int4."""
    v = b.value()
    if b.dtype != np.float32:
        return
    kind = b.pick((np.int8, ml_dtypes.int4) if b.opset >= 21 else (np.int8, np.uint8))
    stored = b.constant(np.array([3], kind), kind)
    (name,) = b.op("DequantizeLinear", stored, b.constant(0.25))
    if v.shape:
        b.add(*b.op("Mul", v.name, name), v.shape, v.batch)


def function(b: Builder) -> None:
    v = b.value()
    name = b.name("Fn")
    body = [
        helper.make_node("Relu", ["a"], ["r"], "inner"),
        helper.make_node("Add", ["a", "r"], ["o"], "outer"),
    ]
    b.functions.append(
        helper.make_function("local", name, ["a"], ["o"], body, [helper.make_opsetid("", b.opset)])
    )
    for _ in range(b.pick((1, 2))):
        b.add(*b.op(name, v.name, domain="local"), v.shape, v.batch)


def select(b: Builder) -> None:
    """Comparison, selection and sorting: not smooth."""
    v = b.value()
    kind = b.pick(("Where", "TopK", "Floor", "ArgMax"))
    if kind == "Where":
        (greater,) = b.op("Greater", v.name, b.constant(0.25))
        b.add(*b.op("Where", greater, v.name, b.vector()), v.shape, v.batch)
    elif kind == "Floor":
        b.add(*b.op("Floor", v.name), v.shape, v.batch)
    elif v.shape and all(v.shape) and not (v.batch and len(v.shape) == 1):
        if kind == "TopK":
            names = b.op("TopK", v.name, b.ints(1), outputs=2, axis=-1)
            b.add(names[0], (*v.shape[:-1], 1), v.batch)
        else:
            (index,) = b.op("ArgMax", v.name, axis=-1, keepdims=1)
            (name,) = b.op("Mul", *b.op("Cast", index, to=b.onnx_type), b.constant(0.125))
            b.add(name, (*v.shape[:-1], 1), v.batch)


# They keep the shape, as branches and bodies must.
INNER: tuple[Step, ...] = (affine, unary, clips, square, batch_norm, constants)
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
