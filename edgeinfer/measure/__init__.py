"""Measuring: latency, memory, closeness, what a model costs, and what really ran.

The functions share their names with the modules that hold them, so here they stand for the functions.
"""

from __future__ import annotations

from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.measure.compare import CompareReport, compare
from edgeinfer.measure.inspect import InspectReport, NodeCost, inspect
from edgeinfer.measure.layer_times import LayerLatencies, LayerLatency, measure_layers
from edgeinfer.measure.layers import LayerCloseness
from edgeinfer.measure.memory_plan import MemoryPlan
from edgeinfer.numerics.closeness import Closeness
from edgeinfer.runtime.benchmark import BenchmarkReport, benchmark
from edgeinfer.runtime.execution import ExecutionSummary, execution, requested_but_not_reached
from edgeinfer.runtime.memory import MemoryReport, memory

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
    "benchmark",
    "compare",
    "execution",
    "generate_feeds",
    "inspect",
    "measure_layers",
    "memory",
    "requested_but_not_reached",
]
