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
from typing import final

import attrs
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import rewriter
from onnxscript.rewriter.rules import common as rules

from edgeinfer.graph.effects import is_known_function
from edgeinfer.graph.fold_constants import ConstantFolder
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.graph.inline_functions import inline_functions
from edgeinfer.graph.no_ops import constant_of, no_op_input
from edgeinfer.model.canonical import canonical_digest
from edgeinfer.model.shape_hints import forget_shapes, inner_values
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.transforms.deduplicate import deduplicate_initializers
from edgeinfer.transforms.merge_clips import merge_clips
from edgeinfer.transforms.simplify_report import Snapshot

__all__ = ["Simplify"]

MAX_ROUNDS = 10
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
    dequantize nodes are never folded, and neither is what draws random numbers. Shapes that the file states
    about inner values are not relied on: what is folded follows from the inputs.

    Args:
        widen_weights: Fold a Cast of weights to a wider dtype, too. It takes more room, and makes the
            weights plain float32 initializers, which quantization and pruning can then change.
    """

    widen_weights: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    inlines_functions = False  # it is part of the work, and reported as such

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Run the passes until nothing changes."""
        before, original = Snapshot.of(model), canonical_digest(model)
        _, left = inline_functions(model)
        for function, reason in left.items():
            report.skip(function, f"the function is not inlined: {reason}")
        inputs = [(value, value.type, value.shape) for value in model.graph.inputs]
        outputs = [(value.type, value.shape) for value in model.graph.outputs]
        stated = {value.name: value.shape for value in inner_values(model)}
        forget_shapes(model)
        names = {
            out.name: (node.op_type, node.name) for node in model.graph.all_nodes() for out in node.outputs
        }
        digest = canonical_digest(model)
        for number in range(MAX_ROUNDS):
            for value in model.graph.outputs:
                value.shape = value.shape if value.is_graph_input() else None
            if number == 0:  # the folder keeps shapes up to date from here on
                infer_shapes(model, data_prop=True, outputs=True)
            self._round(model)
            # Inference may know more than the signature says.
            for value, (kind, shape) in zip(model.graph.outputs, outputs, strict=True):
                value.type, value.shape = kind, shape
            for value, kind, shape in inputs:
                value.type, value.shape = kind, shape
            _restore_names(model, names)
            previous, digest = digest, canonical_digest(model)
            if digest == previous:
                break
        else:
            report.note(f"stopped after {MAX_ROUNDS} rounds; another Simplify may find more")
        for value in inner_values(model):
            value.shape = value.shape or stated.get(value.name)
        if digest != original:
            before.report_changes(Snapshot.of(model), report)
        _report_unfolded(model, report)

    def _round(self, model: ir.Model) -> None:
        opset = model.opset_imports.get("", 0)
        passes: list[ir.passes.PassBase] = []
        if any(value.is_graph_input() for value in model.graph.initializers.values()):
            model.ir_version = max(model.ir_version, 4)  # before it, every initializer had to be an input
            passes.append(common_passes.RemoveInitializersFromInputsPass())
        passes.append(ConstantFolder(self._may_grow))
        _run_without(model, passes, [n for n in model.graph.all_nodes() if _misread_sequence(n, opset)])
        _release(model)
        for node in list(model.graph.all_nodes()):
            _make_identity(node, opset)
        _eliminate_identities(model)
        if opset >= _RULES_OPSET:
            merge_clips(model.graph, opset)
            chosen = _RULES + (_RULES_FROM_14 if opset >= 14 else ())
            _run(model, [rewriter.RewritePass(chosen)])
        if model.ir_version >= 4:
            _run(
                model,
                [
                    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                    common_passes.LiftSubgraphInitializersToMainGraphPass(),
                ],
            )
            deduplicate_initializers(model.graph, opset)
        single = [node for node in model.graph.all_nodes() if not _may_stand_for_two(node, opset)]
        _run_without(model, [common_passes.CommonSubexpressionEliminationPass()], single)
        _run(
            model,
            [
                common_passes.RemoveUnusedNodesPass(),
                common_passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
                common_passes.RemoveUnusedOpsetsPass(),
                common_passes.NameFixPass(),
            ],
        )

    def _may_grow(self, node: ir.Node) -> bool:
        return self.widen_weights and node.op_type == "Cast"


def _release(model: ir.Model) -> None:
    """Cut what nodes of removed subgraphs still read, such as those of a branch that is never taken."""
    graphs = [model.graph, *model.graph.subgraphs()]
    live = set(model.graph.all_nodes())
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for node in live for value in node.outputs]
    for value in values:
        for user, index in list(value.uses()):
            if user not in live:
                user.replace_input_with(index, None)


def _misread_sequence(node: ir.Node, opset: int) -> bool:
    """Whether the folder would write something else than what the node says.

    It takes `keepdims` into account where the specification ignores it, and writes operators of opset 18.
    """
    if node.op_type == "SplitToSequence":
        return opset < 18 or node.attributes.get_int("keepdims", 1) == 0
    return node.op_type == "ConcatFromSequence" and opset < 13


def _may_stand_for_two(node: ir.Node, opset: int) -> bool:
    """Whether another node with the same inputs and attributes may be replaced by this one."""
    return is_known_function(node, opset) and all(output.name for output in node.outputs)


def _run(model: ir.Model, passes: list[ir.passes.PassBase]) -> None:
    ir.passes.Sequential(*passes)(model)


def _run_without(model: ir.Model, passes: list[ir.passes.PassBase], kept: list[ir.Node]) -> None:
    """Run passes that must not see some nodes."""
    domains = [node.domain for node in kept]
    for number, node in enumerate(kept):
        node.domain = f"{_KEPT}.{number}"  # one each, so that two of them are not taken for equal
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
