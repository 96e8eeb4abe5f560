"""`Simplify`: constant folding, dead code, no-ops, common subexpressions and tidy initializers.

The passes of onnx-ir and the folder and rewrite rules of onnxscript do the work. Here are the choice of
those that are sound for every model, the limit on how far weights may grow, the iteration to a fixed
point, and the account of what changed.

Rules of onnxscript that are left out, with the reason: tolerant no-op rules (they take 1.000001 for 1; see
`no_ops`), Slice/Slice to Split (wrong halves for an odd size, and an attribute of opset 18), Flatten to
Reshape and the removal of zero biases (nothing gets simpler and the node's name is lost), explicit padding
for auto_pad (forgets dilations), fusion of batch normalization (`FuseBatchNorm` does it and says why not).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, final

import attrs
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import rewriter
from onnxscript.optimizer import _constant_folding
from onnxscript.rewriter.rules import common as rules

from edgeinfer.graph.no_ops import constant_of, no_op_input
from edgeinfer.model.canonical import canonical_digest
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["Simplify"]

# A folded result up to this many elements is always stored: shapes, axes, small tables.
SMALL_ELEMENTS = 1024
MAX_ROUNDS = 10
_NO_LIMIT = 1 << 62
_SEQUENCES = ("ConcatFromSequence", "SplitToSequence")
_KEPT = "edgeinfer.kept"  # a domain that no pass knows

_RULES = (
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_expand_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.fuse_pad_into_conv_rule,
    rules.successive_relu_rule,
    rules.successive_clip_rule,
    rules.successive_relu_clip_rule,
    rules.successive_clip_relu_rule,
)
# The rule writes an attribute of Reshape that came with opset 14.
_RULES_FROM_14 = (rules.materialize_reshape_shape_rule,)
# The rules build nodes with inputs where older opsets have attributes.
_RULES_OPSET = 13


@final
@attrs.frozen
class Simplify(GraphTransform):
    """Make the graph smaller without changing what it computes.

    Weights never grow: a constant that is cheap to compute and large to store (a ConstantOfShape, an
    Expand, a Cast from float16 to float32) stays computed and is named in `report.skipped`. Quantize and
    dequantize nodes are never folded.

    Args:
        widen_weights: Fold a Cast of weights to a wider dtype, too. It takes more room, and makes the
            weights plain float32 initializers, which quantization and pruning can then change.
    """

    widen_weights: bool = False

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Run the passes until nothing changes."""
        before = _Snapshot.of(model)
        declared = [(value, value.type, value.shape) for value in model.graph.outputs]
        names = {
            out.name: (node.op_type, node.name) for node in model.graph.all_nodes() for out in node.outputs
        }
        digest = original = canonical_digest(model)
        for _ in range(MAX_ROUNDS):
            self._round(model)
            for (_, kind, shape), value in zip(declared, model.graph.outputs, strict=True):
                value.type, value.shape = kind, shape  # inference may know more than the signature says
            _restore_names(model, names)
            previous, digest = digest, canonical_digest(model)
            if digest == previous:
                break
        else:
            report.note(f"stopped after {MAX_ROUNDS} rounds; another Simplify may find more")
        if digest != original:
            before.report_changes(_Snapshot.of(model), report)
        _report_unfolded(model, report)

    def _round(self, model: ir.Model) -> None:
        opset = model.opset_imports.get("", 0)
        passes: list[ir.passes.PassBase] = []
        if model.functions:
            passes.append(common_passes.InlinePass())
        if any(value.is_graph_input() for value in model.graph.initializers.values()):
            model.ir_version = max(model.ir_version, 4)  # before it, every initializer had to be an input
            passes.append(common_passes.RemoveInitializersFromInputsPass())
        passes.append(
            _constant_folding.FoldConstantsPass(
                shape_inference=True,
                input_size_limit=_NO_LIMIT,
                output_size_limit=SMALL_ELEMENTS,
                should_fold=self._should_fold,
            )
        )
        # What the folder writes for sequences is of opset 13.
        sequences = [] if opset >= 13 else [n for n in model.graph.all_nodes() if n.op_type in _SEQUENCES]
        _run_without(model, passes, sequences)
        for node in list(model.graph.all_nodes()):
            _make_identity(node, opset)
        _eliminate_identities(model)
        passes = []
        if opset >= _RULES_OPSET:
            chosen = _RULES + (_RULES_FROM_14 if opset >= 14 else ())
            passes.append(rewriter.RewritePass(chosen))
        if model.ir_version >= 4:
            passes += [
                common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                common_passes.LiftSubgraphInitializersToMainGraphPass(),
                common_passes.DeduplicateInitializersPass(),
            ]
        passes += [
            common_passes.CommonSubexpressionEliminationPass(),
            common_passes.RemoveUnusedNodesPass(),
            common_passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common_passes.RemoveUnusedOpsetsPass(),
            common_passes.NameFixPass(),
        ]
        _run(model, passes)

    def _should_fold(self, node: ir.Node) -> bool | None:
        if node.op_type == "ConstantOfShape":
            shape = constant_of(node.inputs[0])
            return shape is not None and int(shape.prod()) <= SMALL_ELEMENTS
        if node.op_type == "Cast" and not self.widen_weights:
            source = node.inputs[0].const_value if node.inputs[0] is not None else None
            if source is None or source.size <= SMALL_ELEMENTS:
                return None
            if ir.DataType(node.attributes.get_int("to", 0)).bitwidth > source.dtype.bitwidth:
                return False
        return None


def _run(model: ir.Model, passes: list[ir.passes.PassBase]) -> None:
    ir.passes.Sequential(*passes)(model)


def _run_without(model: ir.Model, passes: list[ir.passes.PassBase], kept: list[ir.Node]) -> None:
    """Run passes that shall not see some nodes."""
    domains = [node.domain for node in kept]
    for node in kept:
        node.domain = _KEPT
    _run(model, passes)
    for node, domain in zip(kept, domains, strict=True):
        node.domain = domain


def _eliminate_identities(model: ir.Model) -> None:
    """Remove Identity nodes, but those that give an output of their graph a name of its own.

    The pass of onnx-ir would rename what the Identity reads to the name of the output. That is wrong when it
    has the name of another output, and when it belongs to a graph around this one.
    """
    kept = [node for node in model.graph.all_nodes() if _names_an_output(node)]
    _run_without(model, [common_passes.IdentityEliminationPass()], kept)


def _names_an_output(node: ir.Node) -> bool:
    if node.op_type != "Identity" or node.domain or not node.outputs[0].is_graph_output():
        return False
    source = node.inputs[0]
    return source is not None and (source.is_graph_output() or source.graph is not node.graph)


def _make_identity(node: ir.Node, opset: int) -> None:
    """Turn a no-op into an Identity of the same name, which the next pass removes where it can."""
    source = no_op_input(node, opset)
    if source is None or node.op_type == "Identity":
        return
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_outputs(1)
    node.resize_inputs(1)
    node.replace_input_with(0, source)


def _restore_names(model: ir.Model, names: dict[str | None, tuple[str, str | None]]) -> None:
    """Give a node that a rule rebuilt the name that it had, and drop the rules' marks."""
    taken = {node.name for node in model.graph.all_nodes()}
    for node in model.graph.all_nodes():
        op_type, name = names.get(node.outputs[0].name, ("", None)) if node.outputs else ("", None)
        if op_type == node.op_type and name and name not in taken:
            taken.discard(node.name)
            node.name = name
            taken.add(name)
        for properties in (node.metadata_props, *(output.metadata_props for output in node.outputs)):
            for key in [key for key in properties if key.startswith("pkg.onnxscript.")]:
                del properties[key]
    unnamed = (node for node in model.graph.all_nodes() if not node.name)
    for node in unnamed:
        name = f"{node.op_type}_{node.outputs[0].name}" if node.outputs else node.op_type
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


class _Snapshot(NamedTuple):
    """What is compared before and after, for the report."""

    nodes: dict[str, tuple[str, tuple[str, ...], str]]  # name: operator, inputs, attributes
    outputs: dict[str, tuple[str, ...]]
    initializers: frozenset[str]
    weight_inputs: frozenset[str]
    functions: int
    opsets: dict[str, int]

    @classmethod
    def of(cls, model: ir.Model) -> _Snapshot:
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

    def report_changes(self, after: _Snapshot, report: ReportBuilder) -> None:
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
        for name in after.nodes.keys() - self.nodes.keys():
            report.apply(name, f"added {after.nodes[name][0]}")
        for name in sorted(self.weight_inputs - after.weight_inputs):
            report.apply(name, "removed the weight from the inputs")
        for name in sorted(self.initializers - after.initializers):
            report.apply(name, "removed an unused or duplicate initializer")
        if self.functions > after.functions:
            report.apply("", f"inlined or removed {self.functions - after.functions} functions")
        for domain in self.opsets.keys() - after.opsets.keys():
            report.apply("", f"removed the unused opset of domain {domain!r}")
        if not report.applied:
            report.apply("", "put nodes, initializers or value names in order")

    def _how_removed(self, name: str, op_type: str, after: _Snapshot) -> str:
        if op_type == "Constant":
            lifted = set(self.outputs[name]) & after.initializers
            return "lifted Constant to an initializer" if lifted else "removed Constant"
        folded = any(output in after.initializers for output in self.outputs[name])
        return f"folded {op_type} to a constant" if folded else f"removed {op_type}"


def _attributes(node: ir.Node) -> str:
    plain = (attr for attr in node.attributes.values() if attr.type is not ir.AttributeType.GRAPH)
    return ";".join(sorted(f"{attr.name}={attr.value!s:.200}" for attr in plain))


def _report_unfolded(model: ir.Model, report: ReportBuilder) -> None:
    for node in _constant_nodes(model):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            report.skip(node, f"{node.op_type} of a constant is kept: it is part of the quantization")
        elif node.op_type in ("ConstantOfShape", "Expand", "Tile", "Cast", "Range"):
            report.skip(node, f"{node.op_type} of a constant is not folded: the weights would grow")
        else:
            report.skip(node, f"{node.op_type} of constants cannot be folded or would make the weights grow")


def _constant_nodes(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph.all_nodes():
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(constant_of(value) is not None for value in inputs):
            yield node
