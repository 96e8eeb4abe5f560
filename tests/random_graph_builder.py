"""`Builder`: grows one random ONNX graph. For `random_graphs`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

BATCH = 2
FLOATS = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
OPSETS = (13, 17, 21)


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
