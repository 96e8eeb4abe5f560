"""Names of nodes that a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Collection

import onnx_ir as ir

from edgeinfer.errors import PreconditionError

__all__ = ["require_nodes"]


def require_nodes(names: Collection[str], graph: ir.Graph, *, where: str) -> None:
    """Check that nodes of these names are in a graph or its subgraphs.

    Args:
        names: The names.
        graph: The main graph.
        where: The transform and its option, for the message.

    Raises:
        PreconditionError: One is not there; the message names those most like it.
    """
    known = {node.name for node in graph.all_nodes() if node.name}
    unknown = sorted(set(names) - known)
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
    raise PreconditionError(
        f"The model has no node {unknown[0]!r}.",
        where=where,
        expected="names of nodes of the model",
        found=", ".join(map(repr, unknown)),
        hint=f"Did you mean {', '.join(map(repr, near))}?" if near else "`inspect(model)` lists the nodes.",
        facts={"unknown": tuple(unknown), "near": tuple(near)},
    )
