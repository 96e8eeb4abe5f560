"""Steps that add layers to a random graph: arithmetic, matrices, convolutions, moves, constants."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests.random_graph_builder import Builder


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
