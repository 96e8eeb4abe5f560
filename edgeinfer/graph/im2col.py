"""The matrix that a Conv, Gemm or MatMul multiplies its weights with.

A convolution is W (M, K) times X (K, columns): each column of X is the window under one output position, in
the order of the weight's own axes (C / groups, kH, kW, ...). For Gemm and MatMul a column is one row of the
input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from edgeinfer.errors import PreconditionError

__all__ = ["Layout", "layout_of_node"]

_OPS = ("Conv", "Gemm", "MatMul")


@final
@attrs.frozen(kw_only=True)
class Layout:
    """How a node reads its input and writes its output.

    Attributes:
        op_type: "Conv", "Gemm" or "MatMul".
        groups: Groups of a Conv; 1 otherwise.
        rows: K, the rows of X in one group, which is the size of a flattened filter.
        outputs: M, the output channels, of all groups.
        kernel: The kernel's spatial shape; empty for Gemm and MatMul.
        strides: One a spatial axis.
        dilations: One a spatial axis.
        pads: (begin..., end...) as in ONNX, when `auto_pad` is NOTSET.
        auto_pad: As in ONNX.
        transposed: A Gemm with transA=1: its input is (K, N).
    """

    op_type: str
    groups: int = 1
    rows: int
    outputs: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    transposed: bool = False

    def columns(
        self,
        x: np.ndarray,
        *,
        max_bytes: int = 64 << 20,
        max_columns: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield X in pieces: (groups, K, n) float32, and the indices (n,) of the output positions.

        Output positions count through batch and space in C order.

        Args:
            x: The node's input.
            max_bytes: The size of a piece at most (one column at least).
            max_columns: Take this many positions at most, drawn without replacement.
            rng: What to draw with; needed with `max_columns`.
        """
        x = self._padded(np.asarray(x, np.float32))
        windows = self._windows(x)
        places = windows.shape[windows.ndim - 1 - len(self.kernel) :]
        total = int(np.prod(places, dtype=np.int64))
        picked = np.arange(total)
        if max_columns is not None and total > max_columns:
            assert rng is not None
            picked = np.sort(rng.choice(total, max_columns, replace=False))
        step = max(1, max_bytes // (4 * self.groups * self.rows))
        for start in range(0, len(picked), step):
            index = picked[start : start + step]
            piece = (
                windows if len(index) == total else self._picked(x, windows, np.unravel_index(index, places))
            )
            yield np.ascontiguousarray(piece.reshape(self.groups, self.rows, len(index))), index

    def output_columns(self, y: np.ndarray) -> np.ndarray:
        """Return the node's output (N, M, ...) as (groups, M / groups, positions)."""
        y = np.asarray(y, np.float32)
        if self.op_type == "Conv":
            flat = np.moveaxis(y, 1, 0).reshape(self.outputs, -1)
        else:
            flat = y.reshape(-1, self.outputs).T
        return flat.reshape(self.groups, self.outputs // self.groups, -1)

    def _padded(self, x: np.ndarray) -> np.ndarray:
        if self.op_type != "Conv":
            return x
        pads = self._pads(x.shape[2:], self._reach())
        return np.pad(x, ((0, 0), (0, 0), *pads)) if np.any(pads) else x

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """Return a view (C, *kernel, N, *output shape); (K, rows) for Gemm and MatMul."""
        if self.op_type != "Conv":
            return x if self.transposed else x.reshape(-1, self.rows).T
        rank = len(self.kernel)
        view = sliding_window_view(x, self._reach(), axis=tuple(range(2, 2 + rank)))
        steps = tuple(slice(None, None, step) for step in (1, 1, *self.strides, *self.dilations))
        axes = (1, *range(2 + rank, 2 + 2 * rank), 0, *range(2, 2 + rank))
        windows: np.ndarray = view[steps].transpose(axes)
        return windows

    def _picked(self, x: np.ndarray, windows: np.ndarray, where: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return the windows at some positions.

        The values of one channel are taken by their numbers, several times as quick as by an index an axis.
        """
        if self.op_type != "Conv":
            return windows[:, where[0]]
        channels = np.moveaxis(x, 1, 0)
        numbers = np.arange(channels[0].size).reshape(len(x), 1, *x.shape[2:])
        index = (..., *where)
        at: np.ndarray = self._windows(numbers)[0][index]
        return channels.reshape(len(channels), -1).take(at.ravel(), axis=1)

    def _reach(self) -> list[int]:
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def _pads(self, sizes: Sequence[int], reach: Sequence[int]) -> list[tuple[int, int]]:
        rank = len(self.kernel)
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            pads = []
            for size, window, stride in zip(sizes, reach, self.strides, strict=True):
                total = max((-(-size // stride) - 1) * stride + window - size, 0)
                small = total // 2
                pads.append(
                    (small, total - small) if self.auto_pad == "SAME_UPPER" else (total - small, small)
                )
            return pads
        return [(self.pads[i], self.pads[rank + i]) for i in range(rank)]


def layout_of_node(node: ir.Node, shape: tuple[int, ...] | None = None) -> Layout:
    """Return how a Conv, Gemm or MatMul reads its input.

    Args:
        node: The node.
        shape: The weight's shape, when the weight is not a constant itself (stored in half precision behind
            a Cast).

    Raises:
        PreconditionError: It is another operator, or its weight is not a constant of known shape.
    """
    weight = node.inputs[1] if node.op_type in _OPS and len(node.inputs) > 1 else None
    if shape is None and weight is not None and weight.const_value is not None:
        shape = weight.const_value.numpy().shape
    if weight is None or shape is None or node.domain not in ("", "ai.onnx"):
        raise PreconditionError(
            "The node has no constant weight to reconstruct.",
            where=f"node {node.name!r}",
            expected="Conv, Gemm or MatMul with a constant second input",
            found=node.op_type,
        )
    if node.op_type == "Conv":
        return _conv_layout(node, shape)
    if len(shape) != 2:
        raise PreconditionError(
            "The weight is not a matrix.", where=f"node {node.name!r}", expected="2 axes", found=str(shape)
        )
    if node.op_type == "Gemm" and _int(node, "transB", 0):
        shape = shape[::-1]
    return Layout(
        op_type=node.op_type,
        rows=shape[0],
        outputs=shape[1],
        transposed=node.op_type == "Gemm" and bool(_int(node, "transA", 0)),
    )


def _conv_layout(node: ir.Node, shape: tuple[int, ...]) -> Layout:
    rank = len(shape) - 2
    auto_pad = node.attributes.get("auto_pad")
    return Layout(
        op_type="Conv",
        groups=_int(node, "group", 1),
        rows=int(np.prod(shape[1:])),
        outputs=shape[0],
        kernel=shape[2:],
        strides=_ints(node, "strides", (1,) * rank),
        dilations=_ints(node, "dilations", (1,) * rank),
        pads=_ints(node, "pads", (0,) * (2 * rank)),
        auto_pad=auto_pad.as_string() if auto_pad is not None else "NOTSET",
    )


def _int(node: ir.Node, name: str, default: int) -> int:
    attr = node.attributes.get(name)
    return int(attr.as_int()) if attr is not None else default


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attr = node.attributes.get(name)
    return tuple(int(value) for value in attr.as_ints()) if attr is not None else default
