"""The noise that each layer alone brings to the outputs when it runs in integers.

One graph has every layer in both forms: what a quantizer makes, and the float tensor, with a switch between
them that is an input. So one session serves for all layers, and none has to be quantized, checked, written
and loaded by itself, which takes longer than running it. A switch is an If, which computes one of its forms
only: with one layer in integers a run costs little more than one of the float model. The layers' kernels are
float ones on dequantized values: what the graph says, which is what the reference backend computes, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.graph.weights import add_initializer, find_linear
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.fused_kernels import DATA, WEIGHT, Region
from edgeinfer.quantization.placement.placement import place
from edgeinfer.quantization.qdq.marks import REFERENCE_KEY
from edgeinfer.quantization.search.model_runs import Feed, Loop, OpenModel
from edgeinfer.quantization.search.output_score import Score, Scorer

__all__ = ["SwitchedModel"]

_SWITCHES = "edgeinfer_switches"


@final
@attrs.frozen(kw_only=True)
class SwitchedModel:
    """A quantized model whose layers can be run in float.

    Attributes:
        model: The model; it has one more input, a bool for each switch.
        count: How many switches there are.
        of_layer: The switches that are on when a layer alone runs in integers, by its node's name.
    """

    model: Model
    count: int
    of_layer: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, quantized: Model, dialect: QDQDialect) -> SwitchedModel:
        """Put switches into what `QuantizeStatic` made, in this process: it needs its float reference."""
        reference = quantized.ir.meta[REFERENCE_KEY]
        assert isinstance(reference, ir.Model)
        return _Switching(quantized, reference, dialect).result()

    def scores(
        self,
        sets: Iterable[Collection[str]],
        feeds: Sequence[Feed],
        scorer: Scorer,
        *,
        tensors: Sequence[str] | None = None,
        loop: Loop | None = None,
    ) -> Iterator[Score]:
        """Yield how close the outputs are to float with each set of layers in integers, and no others.

        Args:
            sets: Names of their nodes.
            feeds: Inputs, those that the scorer has its reference of.
            scorer: Knows the float outputs.
            tensors: The scored tensors; None for the outputs.
            loop: Feed outputs back into inputs.
        """
        with OpenModel(self.model, tensors=tensors, loop=loop) as opened:
            for layers in sets:
                on = np.zeros(self.count, bool)
                for layer in layers:
                    on[sorted(self.of_layer[layer])] = True
                yield scorer.score(opened.run({**feed, _SWITCHES: on} for feed in feeds))


class _Switching:
    """Puts the switches into one graph."""

    def __init__(self, quantized: Model, reference: ir.Model, dialect: QDQDialect) -> None:
        self.model = quantized.copy_ir()
        self.graph = self.model.graph
        self.dialect = attrs.evolve(dialect, costs=None)
        self.floats = {node.name or "": node for node in reference.graph}
        self.regions = place(reference, self.dialect).regions
        self.conditions: list[ir.Value] = []
        self.by_tensor: dict[str, int] = {}
        self.by_weight: dict[str, int] = {}

    def result(self) -> SwitchedModel:
        nodes = {node.name or "": node for node in self.graph}
        for node in list(self.graph):
            if node.op_type == "QuantizeLinear":
                self.switch_activation(node)
        for region in self.regions:
            name = region.node.name or ""
            if name in nodes:
                self.switch_weight(nodes[name])
        self.feed()
        of_layer = {
            region.node.name or "": frozenset(self.switches_of(region))
            for region in self.regions
            if (region.node.name or "") in self.by_weight
        }
        return SwitchedModel(model=Model(self.model), count=max(1, len(self.conditions)), of_layer=of_layer)

    def condition(self) -> tuple[int, ir.Value]:
        number = len(self.conditions)
        value = ir.Value(
            name=f"{_SWITCHES}_{number}", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1])
        )
        self.conditions.append(value)
        return number, value

    def switch_activation(self, quantize: ir.Node) -> None:
        """Let the readers of a tensor's dequantized values read the tensor itself when the switch is off."""
        source = quantize.inputs[0]
        behind = [
            user
            for user in quantize.outputs[0].consumers()
            if user.outputs[0].consumers() and not user.outputs[0].is_graph_output()
        ]
        if source is None or not behind:
            return
        number, condition = self.condition()
        self.by_tensor[source.name or ""] = number
        for dequantize in behind:
            first = _copy(quantize)
            on = [first, _copy(dequantize, {quantize.outputs[0]: first.outputs[0]})]
            self.choose(condition, dequantize, on, [ir.node("Identity", [source])])
        if not quantize.outputs[0].consumers():
            self.graph.remove(quantize, safe=True)

    def switch_weight(self, node: ir.Node) -> None:
        """Let a layer read its float weight when the switch is off."""
        weight, twin = node.inputs[WEIGHT], self.floats.get(node.name or "")
        maker = weight.producer() if weight is not None else None
        stored = twin.inputs[WEIGHT] if twin is not None else None
        array = ir.convenience.get_const_tensor(stored) if stored is not None else None
        if maker is None or maker.op_type != "DequantizeLinear" or weight is None or array is None:
            return
        number, condition = self.condition()
        self.by_weight[node.name or ""] = number
        plain = add_initializer(self.graph, f"{node.name}_float_weight", array.numpy())
        # The rounded weight is a constant, too: a runtime may not find those of a DequantizeLinear in an If.
        layer = find_linear(node)
        rounded = weight
        if not isinstance(layer, str):
            rounded = add_initializer(self.graph, f"{node.name}_rounded_weight", layer.array())
        on, off = _copy(node, {weight: rounded}), _copy(node, {weight: plain})
        self.choose(condition, node, [on], [off])
        if not weight.consumers():
            self.graph.remove(maker, safe=True)

    def choose(self, condition: ir.Value, old: ir.Node, on: list[ir.Node], off: list[ir.Node]) -> None:
        """Put an If in the place of a node: of the two forms only the one that is wanted is computed.

        Args:
            condition: The switch.
            old: The node; it is removed.
            on: One form, in order; the last makes the output.
            off: The other form.
        """
        output = old.outputs[0]
        branches = []
        for kind, nodes in (("then_branch", on), ("else_branch", off)):
            for number, node in enumerate(nodes):
                node.name = f"{old.name}_{kind}_{number}"
                node.outputs[0].name = f"{output.name}_{kind}_{number}"
            last = nodes[-1].outputs[0]
            last.type, last.shape = output.type, output.shape
            branches.append(ir.AttrGraph(kind, ir.Graph([], [last], nodes=nodes, name=f"{old.name}_{kind}")))
        chosen = ir.Node("", "If", [condition], branches, name=f"{old.name}_switch")
        result, name = chosen.outputs[0], output.name
        result.type, result.shape = output.type, output.shape
        self.graph.insert_after(old, chosen)
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)
        result.name = name

    def feed(self) -> None:
        """Make the switches an input."""
        count = max(1, len(self.conditions))
        value = ir.Value(name=_SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([count]))
        self.graph.inputs.append(value)
        first = self.graph[0]
        for number, condition in enumerate(self.conditions):
            index = add_initializer(self.graph, f"{condition.name}_index", np.array([number], np.int64))
            gather = ir.node("Gather", [value, index], {"axis": 0}, name=f"{condition.name}_Gather")
            gather.outputs[0].name = condition.name
            gather.outputs[0].type, gather.outputs[0].shape = condition.type, condition.shape
            condition.replace_all_uses_with(gather.outputs[0])
            self.graph.insert_before(first, gather)

    def switches_of(self, region: Region) -> set[int]:
        """Return what must be on for one layer alone: its weight, what it reads, and what it must store."""
        found = {self.by_weight[region.node.name or ""]}
        data = region.node.inputs[DATA]
        found |= self.above(data)
        if region.node.op_type in self.dialect.needs_output and region.output.name in self.by_tensor:
            found.add(self.by_tensor[region.output.name])
        return found

    def above(self, value: ir.Value | None) -> set[int]:
        """Return the switch of a tensor, or of those that operators which move values make it from."""
        if value is None:
            return set()
        if value.name in self.by_tensor:
            return {self.by_tensor[value.name]}
        node = value.producer()
        if node is None or node.op_type not in self.dialect.moving:
            return set()
        every = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return {number for source in every for number in self.above(source)}


def _copy(node: ir.Node, instead: Mapping[ir.Value, ir.Value] | None = None) -> ir.Node:
    inputs = [value if value is None else (instead or {}).get(value, value) for value in node.inputs]
    return ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        overload=node.overload,
        version=node.version,
    )
