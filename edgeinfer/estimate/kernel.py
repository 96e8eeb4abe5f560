"""`Kernel`: what one kernel of a runtime computes and moves."""

from __future__ import annotations

from typing import final

import attrs

__all__ = ["COMPUTE_KINDS", "Kernel"]

COMPUTE_KINDS = frozenset(
    ["conv", "pointwise", "depthwise", "grouped", "deconv", "gemm", "matmul", "recurrent"]
)


@final
@attrs.frozen(kw_only=True)
class Kernel:
    """One kernel.

    Attributes:
        node: The name of its first node.
        kind: `conv`, `pointwise`, `depthwise`, `grouped`, `deconv`, `gemm`, `matmul`, `elementwise`, `move`,
            `pool`, `average_pool`, `reduce`, `quantize`, `dequantize`, `recurrent` or `other`.
        precision: `int8`, `float16` or `float32`: what it computes in.
        nodes: How many nodes it holds.
        macs: Multiply-accumulates; None where a shape is not known.
        outs: Output channels a group (columns of a matrix product), 0 where there are none.
        ins: Input channels a group (the length of a dot product, without the taps of a convolution).
        groups: Groups of a convolution, matrices of a batched product; else 1.
        taps: Positions of a convolution's kernel; else 1.
        width: The last spatial size of the output (rows of a matrix product); 1 where there is none.
        positions: Spatial positions of the output in all, batch included; the rows of a matrix product.
        stride: The last stride of a convolution or pooling.
        read_bytes: Activations read.
        written_bytes: Activations written.
        weight_bytes: Weights read.
        operations: Elementary operations beside the products.
    """

    node: str
    kind: str
    precision: str
    nodes: int = 1
    macs: int | None = 0
    outs: int = 0
    ins: int = 0
    groups: int = 1
    taps: int = 1
    width: int = 1
    positions: int = 1
    stride: int = 1
    read_bytes: int = 0
    written_bytes: int = 0
    weight_bytes: int = 0
    operations: int = 0
