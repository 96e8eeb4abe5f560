"""Which layers are in integers only because outputs of the model may be 8-bit values."""

from __future__ import annotations

import attrs

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.placement import place
from edgeinfer.quantization.placement.prepare import prepare

__all__ = ["output_layers"]


def output_layers(model: Model, dialect: QDQDialect) -> frozenset[str]:
    """Return the names of the nodes that run in integers with `QDQDialect.quantize_outputs` alone.

    As `keep_float` they give back what the model is without it. Kernel costs are left out of it: a node that
    the dialect leaves in float for its costs may be among them.

    Args:
        model: The float model.
        dialect: The target's; whether its `quantize_outputs` is set does not matter.
    """
    graph = model.copy_ir()
    prepare(graph)
    without, with_outputs = (
        {str(region.node.name) for region in place(graph, each).regions}
        for each in (
            attrs.evolve(dialect, costs=None, quantize_outputs=False),
            attrs.evolve(dialect, costs=None, quantize_outputs=True),
        )
    )
    return frozenset(with_outputs - without)
