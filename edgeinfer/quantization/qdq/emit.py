"""Writing QuantizeLinear and DequantizeLinear into a graph.

Names: the float tensor `t` keeps its name; beside it stand `t_quantized`, `t_dequantized`, `t_scale` and
`t_zero_point`, and the nodes `t_QuantizeLinear` and `t_DequantizeLinear`. Where the dequantized value is an
output of the model, that has the name `t`, and the float tensor is `t_float`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.numerics.qparams import QParams

__all__ = ["Emitter"]


@final
@attrs.frozen
class Emitter:
    """Writes quantizers into one graph.

    Args:
        graph: The graph; it is changed.
    """

    graph: ir.Graph

    def activation(self, value: ir.Value, qparams: QParams, uses: Iterable[tuple[ir.Node, int]]) -> ir.Value:
        """Quantize and dequantize `value`, let `uses` read the result and return it."""
        scale, zero_point = self.parameters(value.name or "", qparams.scale, qparams.zero_point)
        quantize = ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{value.name}_QuantizeLinear")
        quantized, dequantized = quantize.outputs[0], ir.Value()
        dequantize = ir.node(
            "DequantizeLinear",
            [quantized, scale, zero_point],
            outputs=[dequantized],
            name=f"{value.name}_DequantizeLinear",
        )
        quantized.name, dequantized.name = f"{value.name}_quantized", f"{value.name}_dequantized"
        quantized.shape = dequantized.shape = value.shape
        quantized.type, dequantized.type = zero_point.type, value.type
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, [quantize, dequantize])
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        for node, index in uses:
            node.replace_input_with(index, dequantized)
        return dequantized

    def output(self, value: ir.Value, dequantized: ir.Value) -> None:
        """Let the dequantized `value` be the output of the model that `value` is, by the same name."""
        outputs = self.graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = dequantized
        name = value.name
        value.name, dequantized.name = f"{name}_float", name

    def constant(
        self, name: str, array: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None
    ) -> ir.Value:
        """Store a constant in integers and return what dequantizes it.

        Args:
            name: The stem of the new names.
            array: The integers.
            scale: One scale, or one for each slice along `axis`.
            zero_point: Of the shape of `scale` and the type of `array`.
            axis: The axis that the scales run along, or None.
        """
        stored = self.initializer(f"{name}_quantized", array)
        dequantize = ir.node(
            "DequantizeLinear",
            [stored, *self.parameters(name, scale, zero_point)],
            {} if axis is None else {"axis": axis},
            name=f"{name}_DequantizeLinear",
        )
        value = dequantize.outputs[0]
        value.name = f"{name}_dequantized"
        value.dtype, value.shape = ir.DataType.FLOAT, stored.shape
        self.graph.insert_before(self.graph[0], dequantize)
        return value

    def parameters(self, name: str, scale: np.ndarray, zero_point: np.ndarray) -> tuple[ir.Value, ir.Value]:
        """Return initializers of a scale and a zero point."""
        return self.initializer(f"{name}_scale", scale), self.initializer(f"{name}_zero_point", zero_point)

    def initializer(self, name: str, array: np.ndarray) -> ir.Value:
        """Register an initializer."""
        tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value
