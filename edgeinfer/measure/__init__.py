"""Measuring: latency, memory, closeness, what a model costs, and what really ran.

Every name is imported when it is first used, so that a device, which has no onnx, can measure latency, memory
and what ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeinfer.lazy import attribute_of

if TYPE_CHECKING:
    from edgeinfer.measure.compare_report import CompareReport
    from edgeinfer.measure.comparison import compare
    from edgeinfer.measure.inspection import InspectReport, NodeCost, inspect
    from edgeinfer.measure.layer_times import LayerLatencies, LayerLatency, measure_layers
    from edgeinfer.measure.layers import LayerCloseness
    from edgeinfer.measure.memory_plan import MemoryPlan
    from edgeinfer.measure.speedup import Speedup, measure_speedup
    from edgeinfer.numerics.closeness import Closeness
    from edgeinfer.runtime.benchmark import benchmark
    from edgeinfer.runtime.benchmark_report import BenchmarkReport
    from edgeinfer.runtime.benchmark_turns import TurnsReport, benchmark_in_turns
    from edgeinfer.runtime.execution import ExecutionSummary, execution, requested_but_not_reached
    from edgeinfer.runtime.memory import MemoryReport, memory

_HOME = {
    "BenchmarkReport": "edgeinfer.runtime.benchmark_report",
    "Closeness": "edgeinfer.numerics.closeness",
    "CompareReport": "edgeinfer.measure.compare_report",
    "ExecutionSummary": "edgeinfer.runtime.execution",
    "InspectReport": "edgeinfer.measure.inspection",
    "LayerCloseness": "edgeinfer.measure.layers",
    "LayerLatencies": "edgeinfer.measure.layer_times",
    "LayerLatency": "edgeinfer.measure.layer_times",
    "MemoryPlan": "edgeinfer.measure.memory_plan",
    "MemoryReport": "edgeinfer.runtime.memory",
    "NodeCost": "edgeinfer.measure.inspection",
    "Speedup": "edgeinfer.measure.speedup",
    "TurnsReport": "edgeinfer.runtime.benchmark_turns",
    "benchmark": "edgeinfer.runtime.benchmark",
    "benchmark_in_turns": "edgeinfer.runtime.benchmark_turns",
    "compare": "edgeinfer.measure.comparison",
    "execution": "edgeinfer.runtime.execution",
    "inspect": "edgeinfer.measure.inspection",
    "measure_layers": "edgeinfer.measure.layer_times",
    "measure_speedup": "edgeinfer.measure.speedup",
    "memory": "edgeinfer.runtime.memory",
    "requested_but_not_reached": "edgeinfer.runtime.execution",
}

__all__ = [
    "BenchmarkReport",
    "Closeness",
    "CompareReport",
    "ExecutionSummary",
    "InspectReport",
    "LayerCloseness",
    "LayerLatencies",
    "LayerLatency",
    "MemoryPlan",
    "MemoryReport",
    "NodeCost",
    "Speedup",
    "TurnsReport",
    "benchmark",
    "benchmark_in_turns",
    "compare",
    "execution",
    "inspect",
    "measure_layers",
    "measure_speedup",
    "memory",
    "requested_but_not_reached",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return attribute_of(_HOME[name], name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
