"""How long ONNX Runtime takes for each node, from the profile that it writes."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeinfer.backends.reports import LayerTime, typical_us

__all__ = ["layer_times"]

_KERNEL = "_kernel_time"
# Nodes that run others, which have entries of their own.
_HOLDERS = frozenset({"If", "Loop", "Scan"})
# What ONNX Runtime puts behind the names of nodes that it makes from others.
_ADDED = re.compile(r"(_token_\d+|_nchwc|_quant|/MatMulAddFusion|/LayerNormFusion|/GeluFusion)+$")


def layer_times(diagnose: Callable[..., Any], feeds: Mapping[str, np.ndarray], runs: int) -> list[LayerTime]:
    """Run with the profiler and return the time of each node of the optimized graph.

    Args:
        diagnose: Creates a session that writes its optimized graph to a path, and its profile to a second.
        feeds: Every input by name.
        runs: How many runs to time.
    """
    with tempfile.TemporaryDirectory(prefix="edgeinfer-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = diagnose(optimized, Path(folder) / "profile")
        for _ in range(runs + 1):  # the first one warms up
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
        makes = _outputs(ir.load(optimized).graph)
    kinds: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            name = name.removesuffix(_KERNEL)
            kinds[name] = event["args"]["op_name"]
            times.setdefault(name, []).append(float(event["dur"]))
    return [
        LayerTime(
            name=name or kind,
            op_type=kind,
            us=typical_us(_by_run(times[name], runs + 1)[1:]),
            onnx_names=tuple(dict.fromkeys(_ADDED.sub("", each) for each in (name, *makes.get(name, ())))),
        )
        for name, kind in kinds.items()
        if kind not in _HOLDERS
    ]


def _outputs(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    """Return the names of the tensors that each node makes, by the node's name."""
    return {
        node.name: tuple(value.name for value in node.outputs if value.name)
        for node in ir.traversal.RecursiveGraphIterator(graph)
        if node.name
    }


def _by_run(times: list[float], runs: int) -> list[float]:
    """Return one time a run of what may run several times in each, as in a loop or by a shared name."""
    if len(times) % runs:
        return [sum(times) / runs] * runs
    return [float(each) for each in np.sum(np.reshape(times, (runs, -1)), axis=1)]
