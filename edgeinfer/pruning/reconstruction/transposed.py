"""Transposed convolutions as ordinary ones, so that least squares can fit them.

With stride s, the outputs at o ≡ φ (mod s) see only the taps t ≡ φ + p (mod s):

    y[φ + s q] = Σ_j x[q + d - j] W[t₀ + s j], t₀ = (φ + p) mod s, d = (φ + p - t₀) / s.

So each phase φ of the output is a convolution of stride 1 with a part of the taps, and the phases share no
weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.im2col import Layout

__all__ = ["Phase", "phases", "refusal_of_transposed"]


@final
@attrs.frozen(kw_only=True)
class Phase:
    """One phase of a transposed convolution, an ordinary convolution of stride 1.

    Attributes:
        layout: How it reads its input, once that is brought into place by `read`.
        offsets: φ along each spatial axis.
        strides: s along each.
        taps: The taps along each, in the order of the convolution's kernel.
        shifts: d along each.
        sizes: How many outputs it has along each.
    """

    layout: Layout
    offsets: tuple[int, ...]
    strides: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]
    shifts: tuple[int, ...]
    sizes: tuple[int, ...]

    def read(self, x: np.ndarray) -> np.ndarray:
        """Return the part of the input (N, C, ...) that the phase sees, padded with zeros."""
        for axis, (taps, shift, size) in enumerate(zip(self.taps, self.shifts, self.sizes, strict=True), 2):
            first = shift - (len(taps) - 1)
            last = size + shift
            index = np.arange(max(first, 0), min(last, x.shape[axis]))
            pads = [(0, 0)] * x.ndim
            pads[axis] = max(-first, 0), max(last - x.shape[axis], 0)
            x = np.pad(np.take(x, index, axis), pads)
        return x

    def output(self, y: np.ndarray) -> np.ndarray:
        """Return the phase's outputs of (N, M, ...)."""
        steps = tuple(slice(o, None, s) for o, s in zip(self.offsets, self.strides, strict=True))
        return y[(slice(None), slice(None)) + steps]  # noqa: RUF005  (3.10 has no star here)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return the phase's part of the weight (C, M / G, ...) as (G, M / G, K), float64."""
        part = weight[np.ix_(*map(range, weight.shape[:2]), *self.taps)].astype(np.float64)
        grouped = part.reshape(self.layout.groups, -1, *part.shape[1:])
        matrix: np.ndarray = np.moveaxis(grouped, 2, 1).reshape(self.layout.groups, weight.shape[1], -1)
        return matrix

    def write(self, weight: np.ndarray, matrix: np.ndarray) -> None:
        """Put the phase's part back, in place."""
        kernel = tuple(len(taps) for taps in self.taps)
        grouped = matrix.reshape(self.layout.groups, weight.shape[1], -1, *kernel)
        part = np.moveaxis(grouped, 1, 2).reshape(weight.shape[0], weight.shape[1], *kernel)
        weight[np.ix_(*map(range, weight.shape[:2]), *self.taps)] = part


def refusal_of_transposed(node: ir.Node) -> str:
    """Return why a transposed convolution has no phases here, or an empty text."""
    if any(dilation != 1 for dilation in _attr(node, "dilations", ())):
        return "a transposed convolution with dilation is not refitted"
    if "output_shape" in node.attributes or _attr(node, "auto_pad", "NOTSET") != "NOTSET":
        return "a transposed convolution with implied pads is not refitted"
    return ""


def phases(node: ir.Node, weight: Sequence[int], output: Sequence[int]) -> list[Phase]:
    """Return the phases of a transposed convolution that have taps.

    Args:
        node: The node, with literal pads and no dilation.
        weight: The shape of its weight, (C, M / G, ...).
        output: The spatial shape of its output.
    """
    rank, groups = len(weight) - 2, int(_attr(node, "group", 1))
    strides = tuple(_attr(node, "strides", (1,) * rank))
    pads = tuple(_attr(node, "pads", (0,) * (2 * rank)))[:rank]
    result = []
    for offsets in itertools.product(*(range(stride) for stride in strides)):
        firsts = [(o + p) % s for o, p, s in zip(offsets, pads, strides, strict=True)]
        taps = tuple(
            tuple(range(first, kernel, stride))[::-1]
            for first, kernel, stride in zip(firsts, weight[2:], strides, strict=True)
        )
        sizes = tuple(-(-(n - o) // s) for n, o, s in zip(output, offsets, strides, strict=True))
        if not all(taps) or min(sizes) < 1:
            continue
        kernel = tuple(len(part) for part in taps)
        layout = Layout(
            op_type="Conv",
            groups=groups,
            rows=weight[0] // groups * int(np.prod(kernel)),
            outputs=weight[1] * groups,
            kernel=kernel,
            strides=(1,) * rank,
            dilations=(1,) * rank,
            pads=(0,) * (2 * rank),
        )
        shifts = tuple((o + p - t) // s for o, p, t, s in zip(offsets, pads, firsts, strides, strict=True))
        result.append(
            Phase(layout=layout, offsets=offsets, strides=strides, taps=taps, shifts=shifts, sizes=sizes)
        )
    return result


def _attr(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value
