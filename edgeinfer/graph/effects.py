"""Nodes that are more than a function of their inputs: they draw random numbers or change a tensor."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.graph.no_ops import constant_of

__all__ = ["is_known_function", "is_random", "updated_inputs"]

_RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def is_random(node: ir.Node, opset: int) -> bool:
    """Whether two runs, or two such nodes with the same inputs, may give different results.

    A seed changes nothing: a runtime draws the next numbers of its sequence on every run.
    """
    if node.domain not in _KNOWN_DOMAINS:
        return False
    if node.op_type == "Dropout":
        return _is_training_dropout(node, opset)
    return node.op_type in _RANDOM


def updated_inputs(node: ir.Node, opset: int) -> tuple[int, ...]:
    """Return which inputs a runtime may write to: the running statistics of a BatchNormalization in training.

    Before opset 14, it is in training when it gives more than one output.
    """
    if node.domain or node.op_type != "BatchNormalization":
        return ()
    if opset >= 14:
        training = node.attributes.get_int("training_mode", 0) != 0
    else:
        training = sum(bool(output.name) for output in node.outputs) > 1
    return (3, 4) if training else ()


def is_known_function(node: ir.Node, opset: int) -> bool:
    """Whether equal inputs surely give equal results, so that one such node can stand for two."""
    return node.domain in _KNOWN_DOMAINS and not is_random(node, opset) and not updated_inputs(node, opset)


def _is_training_dropout(node: ir.Node, opset: int) -> bool:
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = constant_of(node.inputs[2])
    return training is None or bool(training.any())
