"""What a kernel's time is made of, in numbers that a fit gives prices to.

All kernels share prices for being called, for what they move and for the weights that they read, in each
precision; beside these each kind of kernel has prices of its own for products, and for what it moves more
dearly than others. So what few nets have still gets a price. What is known of runtimes on CPUs:

- Kernels compute in full vectors: products count with the channels and the width rounded up to them.
- Channels that fill no block of the runtime's layout send a convolution to another, slower kernel.
- A matrix product with one row reads each weight for one product: it is a kind of its own.
- Weights that do not fit a cache are read from further away at every run.
- Where a model leaves sizes open (mostly that of the batch), shapes are worked out at each run, and memory is
  not planned before: each kernel and each tensor costs more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from edgeinfer.estimate.kernel import COMPUTE_KINDS, Kernel

__all__ = ["BLOCKS", "INTEGER_BLOCKS", "add_up", "features"]

# Channels in a block of the runtimes' layout: as many floats as a vector has, 8 with AVX2, 16 with AVX-512.
# A calibration keeps the one that explains its nets best.
BLOCKS = (8, 16)
# Output channels that kernels in integers compute together: kernels with AMX take four tiles of 16.
INTEGER_BLOCKS = (16, 64)
_POSITIONS = 4  # that a kernel computes at once
# Up to here an image is taken as it is, by a kernel of its own.
_FEW_CHANNELS = 4
# What fits a core's own cache, and about its share of the one that all cores have.
_CACHES_MB = (0.5, 4.0)
_BLOCKED = ("conv", "pointwise", "depthwise")
_OPEN = ("calls", "moved_mb")
_MEGA = 1e6


def features(
    kernel: Kernel, net_weights_mb: float = 0.0, *, block: int = BLOCKS[0], integer_block: int | None = None
) -> dict[str, float]:
    """Return the features of one kernel by name: `kind/precision/feature`.

    Args:
        kernel: The kernel.
        net_weights_mb: The weights of all kernels of the net, in MB.
        block: Channels that are computed together.
        integer_block: Output channels that are computed together in int8; None: as many as in float.
    """
    wide = integer_block if integer_block and kernel.precision == "int8" else block
    moved = (kernel.read_bytes + kernel.written_bytes) / _MEGA
    shared = {"calls": 1.0, "moved_mb": moved}
    if kernel.kind in COMPUTE_KINDS:
        weights = kernel.weight_bytes / _MEGA
        shared["weights_mb"] = weights
        shared |= {f"weights_beyond_{c:g}_mb": weights for c in _CACHES_MB if net_weights_mb > c}
        own = {"megamacs": _rounded_macs(kernel, wide) / _MEGA, "moved_mb": moved}
        if kernel.kind == "gemm" and kernel.width == 1:
            own["calls"] = 1.0
    else:
        taps = kernel.taps if kernel.kind in ("pool", "average_pool") else 1
        own = {"calls": 1.0, "moved_mb": moved, "operations_m": kernel.operations * taps / _MEGA}
    kind = _kind(kernel, block)
    found = {f"any/{kernel.precision}/{name}": value for name, value in shared.items()}
    return found | {f"{kind}/{kernel.precision}/{name}": value for name, value in own.items()}


def _kind(kernel: Kernel, block: int) -> str:
    if kernel.kind == "gemm" and kernel.width == 1:
        return "gemv"
    if kernel.kind == "conv" and kernel.ins <= _FEW_CHANNELS:
        return "first"
    return kernel.kind + ("_ragged" if kernel.kind in _BLOCKED and _channels(kernel) % block else "")


def _channels(kernel: Kernel) -> int:
    return kernel.groups if kernel.kind == "depthwise" else kernel.outs


def _rounded_macs(kernel: Kernel, block: int) -> float:
    factor = _up(_channels(kernel), block)
    if kernel.kind in (*_BLOCKED, "grouped"):
        factor *= _up(kernel.width, _POSITIONS)
    return (kernel.macs or 0) * factor


def _up(count: int, block: int) -> float:
    """Return how many times a count the next multiple of a block is."""
    return math.ceil(count / block) * block / count if count else 1.0


def add_up(
    kernels: Iterable[Kernel],
    *,
    block: int = BLOCKS[0],
    integer_block: int | None = None,
    open_shapes: bool = False,
) -> dict[str, float]:
    """Return the features of a net: of all its kernels together, and one call of the runtime.

    Args:
        kernels: The kernels of the net.
        block: As for `features`.
        integer_block: As for `features`.
        open_shapes: The model leaves sizes open, which each kernel and each tensor then pay for.
    """
    own = tuple(kernels)
    weights_mb = sum(kernel.weight_bytes for kernel in own) / _MEGA
    total = {"run/calls": 1.0}
    for kernel in own:
        found = features(kernel, weights_mb, block=block, integer_block=integer_block)
        if open_shapes:
            found |= {f"open/{kernel.precision}/{n}": found[f"any/{kernel.precision}/{n}"] for n in _OPEN}
        for name, value in found.items():
            total[name] = total.get(name, 0.0) + value
    return total
