"""What `Simplify` changed, found by comparing the graph before and after."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["Snapshot"]


class Snapshot(NamedTuple):
    """What is compared before and after, for the report."""

    nodes: dict[str, tuple[str, tuple[str, ...], str]]  # name: operator, inputs, attributes
    outputs: dict[str, tuple[str, ...]]
    initializers: frozenset[str]
    weight_inputs: frozenset[str]
    functions: int
    opsets: dict[str, int]

    @classmethod
    def of(cls, model: ir.Model) -> Snapshot:
        """Take one of a model."""
        graphs = [model.graph, *model.graph.subgraphs()]
        weights = frozenset(name for graph in graphs for name in graph.initializers)
        nodes = list(model.graph.all_nodes())
        return cls(
            nodes={
                node.name or "": (
                    node.op_type,
                    tuple(value.name or "" if value is not None else "" for value in node.inputs),
                    _attributes(node),
                )
                for node in nodes
            },
            outputs={node.name or "": tuple(value.name or "" for value in node.outputs) for node in nodes},
            initializers=weights,
            weight_inputs=frozenset(v.name or "" for v in model.graph.inputs if v.name in weights),
            functions=len(model.functions),
            opsets=dict(model.opset_imports),
        )

    def report_changes(self, after: Snapshot, report: ReportBuilder) -> None:
        """Say what differs in a later one."""
        for name, (op_type, inputs, attributes) in self.nodes.items():
            now = after.nodes.get(name)
            if now is None:
                report.apply(name, self._how_removed(name, op_type, after))
            elif now[0] != op_type:
                report.apply(name, f"replaced {op_type} by {now[0]}")
            elif now[1] != inputs:
                report.apply(name, f"rewired {op_type}")
            elif now[2] != attributes:
                report.apply(name, f"changed the attributes of {op_type}")
        for name in sorted(after.nodes.keys() - self.nodes.keys()):
            report.apply(name, f"added {after.nodes[name][0]}")
        for name in sorted(self.weight_inputs - after.weight_inputs):
            report.apply(name, "removed the weight from the inputs")
        for name in sorted(self.initializers - after.initializers):
            report.apply(name, "removed an unused or duplicate initializer")
        if self.functions > after.functions:
            report.apply("", f"inlined or removed {self.functions - after.functions} functions")
        for domain in sorted(self.opsets.keys() - after.opsets.keys()):
            report.apply("", f"removed the unused opset of domain {domain!r}")
        if not report.applied:
            report.apply("", "put nodes, initializers or value names in order")

    def _how_removed(self, name: str, op_type: str, after: Snapshot) -> str:
        if op_type == "Constant":
            lifted = set(self.outputs[name]) & after.initializers
            return "lifted Constant to an initializer" if lifted else "removed Constant"
        folded = any(output in after.initializers for output in self.outputs[name])
        return f"folded {op_type} to a constant" if folded else f"removed {op_type}"


def _attributes(node: ir.Node) -> str:
    plain = (attr for attr in node.attributes.values() if attr.type is not ir.AttributeType.GRAPH)
    return ";".join(sorted(f"{attr.name}={attr.value!s:.200}" for attr in plain))
