"""What a kernel's time is made of, in numbers that a fit gives prices to.

All kernels share prices for being called and for what they move, in each precision; beside these each kind of
kernel has prices of its own for products, and where it differs for what it moves. So what few nets have still
gets a price. Kernels compute whole vectors: products count with the channels rounded up to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgeinfer.estimate.kernel import COMPUTE_KINDS, Kernel

__all__ = ["add_up", "features"]

# Channels in a block of the CPU runtimes' layout (one vector of AVX2).
_BLOCK = 8
# Up to here an image is taken as it is, by a kernel of its own.
_FEW_CHANNELS = 4
_MEGA = 1e6


def features(kernel: Kernel) -> dict[str, float]:
    """Return the features of one kernel by name: `kind/precision/feature`."""
    kind = "first" if kernel.kind == "conv" and kernel.ins <= _FEW_CHANNELS else kernel.kind
    moved = (kernel.read_bytes + kernel.written_bytes) / _MEGA
    shared = {"calls": 1.0, "moved_mb": moved}
    if kernel.kind in COMPUTE_KINDS:
        shared["weights_mb"] = kernel.weight_bytes / _MEGA
        own = {"megamacs": _rounded_macs(kernel) / _MEGA, "moved_mb": moved}
    else:
        taps = kernel.taps if kernel.kind == "pool" else 1
        own = {"calls": 1.0, "moved_mb": moved, "operations_m": kernel.operations * taps / _MEGA}
    found = {f"any/{kernel.precision}/{name}": value for name, value in shared.items()}
    return found | {f"{kind}/{kernel.precision}/{name}": value for name, value in own.items()}


def _rounded_macs(kernel: Kernel) -> float:
    channels = kernel.groups if kernel.kind == "depthwise" else kernel.outs
    whole = math.ceil(channels / _BLOCK) * _BLOCK
    return (kernel.macs or 0) * (whole / channels if channels else 1.0)


def add_up(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Return the features of a net: of all its kernels together, and one call of the runtime."""
    total = {"run/calls": 1.0}
    for kernel in kernels:
        for name, value in features(kernel).items():
            total[name] = total.get(name, 0.0) + value
    return total
