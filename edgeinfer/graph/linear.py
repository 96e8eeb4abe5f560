"""A layer that an affine map is fused into: the view of `graph.weights`, with its numbers in float64."""

from __future__ import annotations

from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.affine import Affine, NotAffineError, Vector
from edgeinfer.graph.no_ops import constant_of
from edgeinfer.graph.weights import Linear as View
from edgeinfer.graph.weights import linear_of

__all__ = ["Linear"]

_KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@final
@attrs.frozen(kw_only=True)
class Linear:
    """A linear layer whose weight and bias are constant.

    Attributes:
        view: Which of its axes is what.
        bias_node: The node that has the bias: `node`, or the Add after a MatMul; None for a MatMul without.
        bias_index: Which input of `bias_node` is the bias.
        weight: W in float64.
        bias: b in float64, shape (C,), already times Gemm's beta; None when there is none.
        dtype: The dtype of W, in which results are stored.
    """

    view: View
    bias_node: ir.Node | None
    bias_index: int
    weight: Vector
    bias: Vector | None
    dtype: ir.DataType

    @classmethod
    def ending_at(cls, node: ir.Node) -> Linear:
        """Read the layer whose output is the output of `node`.

        Raises:
            NotAffineError: There is none, with the reason.
        """
        bias_node: ir.Node | None = node
        bias_index = 2
        if (node.domain, node.op_type) == ("", "Add"):
            bias_node, bias_index, node = node, *_matmul_before(node)
        elif node.op_type == "MatMul":
            bias_node = None
        if node.domain or node.op_type not in _KINDS:
            raise NotAffineError(f"{node.op_type}, before it, is not one of {', '.join(_KINDS)}")
        array = constant_of(node.inputs[1])
        value = node.inputs[1]
        if array is None or value is None:
            reason = (
                "can be overridden as an input; Simplify first" if _is_input(value) else "is not constant"
            )
            raise NotAffineError(f"the weight of {node.name} {reason}")
        dtype = ir.DataType.from_numpy(array.dtype)
        if dtype not in _FLOATS:
            raise NotAffineError(f"the weight of {node.name} is {dtype.name}, not floating point")
        if node.op_type == "MatMul" and array.ndim != 2:
            raise NotAffineError(f"the weight of {node.name} has rank {array.ndim}, not 2")
        layer = cls(
            view=linear_of(node, value),
            bias_node=bias_node,
            bias_index=bias_index,
            weight=array.astype(np.float64),
            bias=None,
            dtype=dtype,
        )
        return attrs.evolve(layer, bias=layer._read_bias())

    @property
    def node(self) -> ir.Node:
        """The Conv, ConvTranspose, Gemm or MatMul."""
        return self.view.node

    @property
    def channels(self) -> int:
        """The number of output channels C."""
        size = int(self.weight.shape[self.view.channel_axis])
        return size * self.view.groups if self.view.kind == "ConvTranspose" else size

    @property
    def in_channels(self) -> int:
        """The number of input channels of a Conv."""
        return int(self.weight.shape[1]) * self.view.groups

    @property
    def axis(self) -> int:
        """The channel axis of the output."""
        return -1 if self.node.op_type == "MatMul" else 1

    @property
    def rank(self) -> int | None:
        """The rank of the output, if known."""
        if self.node.op_type == "MatMul":
            shape = self.node.outputs[0].shape
            return None if shape is None else len(shape)
        return self.weight.ndim

    @property
    def takes_shift(self) -> bool:
        """Whether there is a place for a bias."""
        return self.bias_node is not None

    @property
    def is_padded(self) -> bool:
        """Whether a convolution pads, or may pad, its input."""
        auto = self.node.attributes.get_string("auto_pad", "NOTSET")
        if auto == "VALID":
            return False
        return auto != "NOTSET" or any(self.node.attributes.get_ints("pads", ()))

    def fuse_after(self, affine: Affine) -> None:
        """Change W and b so that the layer gives affine(W x + b).

        Raises:
            NotAffineError: The result does not fit the weights' dtype; nothing was changed.
        """
        scale, shift = affine
        if self.node.op_type == "ConvTranspose":
            # (C_in, C_out/g, ...) as (g, C_in/g, C_out/g, ...), times (g, 1, C_out/g, 1, ...)
            inputs, outputs, *kernel = self.weight.shape
            groups = self.view.groups
            blocks = self.weight.reshape(groups, inputs // groups, outputs, *kernel)
            weight = (blocks * scale.reshape(groups, 1, outputs, *[1] * len(kernel))).reshape(
                self.weight.shape
            )
        else:
            shape = [1] * self.weight.ndim
            shape[self.view.channel_axis] = -1
            weight = self.weight * scale.reshape(shape)
        self._store(weight, None if self.bias is None and not shift.any() else scale * self._bias() + shift)

    def fuse_before(self, affine: Affine) -> None:
        """Change W and b so that a Conv gives W affine(x) + b.

        Raises:
            NotAffineError: The result does not fit the weights' dtype; nothing was changed.
        """
        outputs, inputs, *kernel = self.weight.shape

        def for_weight(vector: Vector) -> Vector:
            # (C_in,) as (C_out, C_in/g, 1, ...): output channel k sees the inputs of its own group
            groups = self.view.groups
            rows = np.repeat(vector.reshape(groups, inputs), outputs // groups, axis=0)
            return rows.reshape(outputs, inputs, *[1] * len(kernel))

        bias = self.bias
        if affine.shift.any():
            axes = tuple(range(1, self.weight.ndim))
            bias = self._bias() + (self.weight * for_weight(affine.shift)).sum(axis=axes)
        self._store(self.weight * for_weight(affine.scale), bias)

    def fold_factors(self) -> bool:
        """Multiply a Gemm's alpha into W and its beta into b, and tell whether there was anything to fold.

        Raises:
            NotAffineError: The result does not fit the weights' dtype; nothing was changed.
        """
        if {self.view.alpha, self.view.beta} == {1.0}:
            return False
        self._store(self.weight * self.view.alpha, self.bias)
        for name in ("alpha", "beta"):
            self.node.attributes.pop(name, None)
        return True

    def new_weight(self, name: str, array: Vector) -> ir.Value:
        """Register an initializer of the layer's dtype beside the node and return it.

        Raises:
            NotAffineError: A number does not fit the dtype.
        """
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        taken = {value.name for node in graph.all_nodes() for value in (*node.outputs, *node.inputs) if value}
        taken |= {*graph.initializers, *(value.name for value in graph.inputs)}
        while name in taken:
            name += "_"
        tensor = ir.Tensor(self.rounded(array), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(self.dtype), const_value=tensor
        )
        graph.register_initializer(value)
        return value

    def _bias(self) -> Vector:
        return np.zeros(self.channels) if self.bias is None else self.bias

    def _read_bias(self) -> Vector | None:
        if self.bias_node is None or len(self.bias_node.inputs) <= self.bias_index:
            return None
        value = self.bias_node.inputs[self.bias_index]
        if value is None:
            return None
        array = constant_of(value)
        if array is None:
            reason = (
                "can be overridden as an input; Simplify first" if _is_input(value) else "is not constant"
            )
            raise NotAffineError(f"the bias of {self.node.name} {reason}")
        per_channel = array.size == self.channels and array.shape[-1:] == (self.channels,)
        if not (array.size == 1 or per_channel) or array.ndim > (self.rank or 1):
            raise NotAffineError(f"the bias of {self.node.name} varies over other axes than the channels")
        return np.broadcast_to(array.astype(np.float64).reshape(-1), (self.channels,)) * self.view.beta

    def rounded(self, array: Vector) -> np.ndarray[Any, Any]:
        """Return the array in the layer's dtype.

        Raises:
            NotAffineError: A number does not fit it.
        """
        with np.errstate(over="ignore"):
            rounded = array.astype(self.dtype.numpy())
        if not np.isfinite(rounded).all():
            raise NotAffineError(f"the fused weights of {self.node.name} do not fit {self.dtype.name}")
        return rounded

    def _store(self, weight: Vector, bias: Vector | None) -> None:
        self.rounded(weight)
        if bias is not None:
            self.rounded(bias)
        self._replace(self.node, 1, weight, "weight")
        if bias is None:
            return
        assert self.bias_node is not None
        if self.view.beta != 1.0:
            self.node.attributes.add(ir.AttrFloat32("beta", 1.0))  # the bias has it inside now
        self._replace(self.bias_node, self.bias_index, bias, "bias")

    def _replace(self, node: ir.Node, index: int, array: Vector, role: str) -> None:
        """Give the node new numbers: in place if they are its own, in a new initializer otherwise."""
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
            old.const_value = ir.Tensor(self.rounded(array), name=old.name)
            old.shape = ir.Shape(array.shape)
            return
        name = f"{node.name}_{role}" if old is None else f"{old.name}_{node.name}"
        node.replace_input_with(index, self.new_weight(name, array))


def _matmul_before(add: ir.Node) -> tuple[int, ir.Node]:
    """Return which input of `add` is the bias, and the MatMul of which it is the bias."""
    for index, value in enumerate(add.inputs):
        producer = value.producer() if value is not None else None
        if producer is None or value is None or (producer.domain, producer.op_type) != ("", "MatMul"):
            continue
        if constant_of(add.inputs[1 - index]) is None:
            continue
        if len(value.uses()) > 1 or value.is_graph_output():
            raise NotAffineError(f"{producer.name}, before {add.name}, has other consumers")
        return 1 - index, producer
    raise NotAffineError("Add, before it, is not the bias of a MatMul")


def _is_input(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input()
