"""Latency from a device's catalog figures alone: a roofline for each kernel, with a floor.

    t = Σ max(floor, operations / (peak · efficiency), bytes / bandwidth)

At batch 1 small kernels take what starting them takes, whatever the peak: ResNet-50 in int8 reaches 10 to
32 % of the dense peak on GPUs. It ranks devices; it is no promise, and the figures say so.
"""

from __future__ import annotations

from typing import final

import attrs

from edgeinfer.devices.device_profile import DeviceProfile, Unit
from edgeinfer.estimate.kernel import COMPUTE_KINDS, Kernel
from edgeinfer.estimate.workload import Workload

__all__ = ["CATALOG_BAND", "Roofline", "roofline_ms"]

# 80 % of the published latencies that benchmarks/catalog_ranking.py compares lie within this factor.
CATALOG_BAND = 2.0
# What kernels reach of the peak where they are large, and what starting one takes where it is not known.
_EFFICIENCY = {"gpu": 0.5, "npu": 0.5, "dla": 0.5, "cpu": 0.5}
_FLOOR_US = {"gpu": 12.0, "npu": 15.0, "dla": 25.0, "cpu": 3.0}
# A depthwise convolution has one product for each value that it loads.
_DEPTHWISE = 0.1
# Without instructions for dot products int8 gains little: published ResNet-50 gains 1.34 on a Raspberry Pi 4
# and 1.52 on a 3B+ (ncnn).
_INT8_WITHOUT_DOT = 1.4


@final
@attrs.frozen(kw_only=True)
class Roofline:
    """An estimate from catalog figures.

    Attributes:
        latency_ms: The estimate.
        notes: What was assumed, because the catalog does not know it.
    """

    latency_ms: float
    notes: tuple[str, ...]


def roofline_ms(work: Workload, profile: DeviceProfile) -> Roofline | None:
    """Estimate the latency on a profile's unit; None where the catalog does not know a peak.

    Args:
        work: What the model asks for, in the precision that it would run in.
        profile: The device, its unit and power mode.
    """
    unit = profile.main
    kind = unit.name if unit.name in _EFFICIENCY else "cpu"
    notes: list[str] = []
    rates = {p: _rate(unit, p, notes) for p in sorted({k.precision for k in work.kernels})}
    fallback = rates.get("float32") or _rate(unit, "float32", notes) or _rate(unit, "float16", notes)
    if any(rate is None for p, rate in rates.items() if p != "float32") or (
        fallback is None and "float32" in rates
    ):
        return None
    floor = unit.number("kernel_floor_us")
    if floor is None:
        floor = _FLOOR_US[kind]
        notes.append(f"{floor:g} µs a kernel are assumed")
    bandwidth = profile.number("bandwidth_bytes_s")
    if bandwidth is None:
        notes.append("the memory's bandwidth is not known and not counted")
    total = 0.0
    for kernel in work.kernels:
        rate = rates[kernel.precision] or fallback
        assert rate is not None
        moved = (
            (kernel.read_bytes + kernel.written_bytes + kernel.weight_bytes) / bandwidth if bandwidth else 0.0
        )
        total += max(floor * 1e-6, _seconds(kernel, rate * _EFFICIENCY[kind]), moved)
    return Roofline(latency_ms=1e3 * total, notes=tuple(dict.fromkeys(notes)))


def _seconds(kernel: Kernel, rate: float) -> float:
    if kernel.kind not in COMPUTE_KINDS:
        return 0.0
    return 2 * (kernel.macs or 0) / (rate * (_DEPTHWISE if kernel.kind == "depthwise" else 1.0))


def _rate(unit: Unit, precision: str, notes: list[str]) -> float | None:
    """Return the peak in operations a second, or None."""
    known = unit.operations_s(precision)
    if precision == "float32":  # matrix units compute it in TF32 where they have that
        known = max(filter(None, (known, unit.number("tf32_flops"))), default=None)
    if known is not None:
        return known
    float32 = unit.operations_s("float32")
    if precision == "int8" and unit.name == "cpu" and float32 is not None:
        notes.append(f"int8 is taken for {_INT8_WITHOUT_DOT:g} times as fast as float32")
        return _INT8_WITHOUT_DOT * float32
    if precision == "float16" and unit.operations_s("int8") is not None:
        notes.append("float16 is taken for half as fast as int8")
        return unit.operations_s("int8") / 2  # type: ignore[operator]
    if precision in ("float16", "bfloat16") and float32 is not None:
        notes.append(f"{precision} is taken for as fast as float32")
        return float32
    if precision == "float32" and unit.operations_s("float16") is not None and unit.name in ("npu", "dla"):
        return unit.operations_s("float16")  # it computes in float16 what is float32 in the graph
    return None
