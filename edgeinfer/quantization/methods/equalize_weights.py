"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization", section 4.1).

Between two layers that are joined by a positively homogeneous function, `f(s x) = s f(x)` for `s > 0`, the
channels may be scaled freely: `W1_i / s_i`, `b1_i / s_i` and `W2[:, i] · s_i` compute the same. With
`s_i = √(r1_i / r2_i)`, r the largest magnitude of the channel's weights in each layer, both layers get equal
ranges per channel, so that one scale for a tensor wastes least. ReLU6 and other Clips are not homogeneous: it
would take a bound per channel, which no runtime fuses into the convolution, so such pairs are left alone.
"""

from __future__ import annotations

from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.propagate import RULES
from edgeinfer.graph.channels.scales import rescale
from edgeinfer.graph.initializers import constant
from edgeinfer.graph.rescaled import note_rescaled
from edgeinfer.graph.weights import Linear, find_linear
from edgeinfer.numerics.fixed_order import round_bits
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["EqualizeWeights"]

_STORED_HALF = "its weight is stored in another float type behind a Cast"
_MAX_ROUNDS = 2000
# In long chains the plain iteration passes ranges on by one layer a round: 419 rounds for a chain of 27
# convolutions, 168 with over-relaxation.
_RELAXATION = 1.5
# Channels whose equalized range stays under this part of the layer's are as good as dead, and left alone.
_DEAD = 1e-3
_CONVERGED = 1e-4  # largest |log s| of a round
_NEGLIGIBLE = 1e-2  # largest |log s| of a pair that counts as equalized already


@final
@attrs.frozen
class EqualizeWeights(GraphTransform):
    """Equalize the weight ranges of layers joined by ReLU, LeakyReLU, PReLU or pooling. Exact in float.

    A layer whose output goes to several layers is equalized with all of them at once. No calibration is
    needed. Apply it after FuseBatchNorm and before quantization.
    """

    names_layers = True
    reports_on = frozenset(("Conv", "Gemm", "MatMul"))

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Scale the channels between layers."""
        outputs = set(model.graph.outputs)
        ranges: dict[ir.Value, np.ndarray] = {}
        links: list[_Link] = []
        for node in model.graph:
            first = find_linear(node)
            if isinstance(first, str):
                if node.op_type in ("Conv", "Gemm", "MatMul"):
                    report.skip(node, first)
                continue
            found = _link(first, outputs)
            if isinstance(found, str):
                report.skip(node, found)
                continue
            links.append(found)
            for layer in (found.first, *found.seconds):
                ranges[layer.weight] = _ranges(layer)
        factors = [round_bits(factor) for factor in _solve(links, ranges)]
        for link, factor in zip(links, factors, strict=True):
            largest = float(np.abs(np.log(factor)).max(initial=0.0))
            if largest < _NEGLIGIBLE:
                report.skip(link.first.node, "its channels are equalized already")
                continue
            _scale(link, factor)
            note_rescaled(model, _scaled_tensors(link, factor))
            names = ", ".join(second.node.name or "" for second in link.seconds)
            report.apply(link.first.node, f"equalized with {names}, scales up to {np.exp(largest):.3g}")


@final
@attrs.frozen(kw_only=True)
class _Link:
    """A layer and the layers that read its channels."""

    first: Linear
    seconds: tuple[Linear, ...]


def _link(first: Linear, outputs: set[ir.Value]) -> _Link | str:
    """Follow a layer's output to the layers that read it, or say what is in the way."""
    if first.dequantize is not None:
        return "its weight is quantized already; equalize before quantizing"
    if first.cast is not None:
        return _STORED_HALF
    if first.bias is not None and (first.bias.const_value is None or len(list(first.bias.uses())) > 1):
        return "its bias is not a constant of its own"
    if first.node.op_type == "MatMul":
        return "a MatMul's bias is another node, which is not followed"
    seconds: list[Linear] = []
    pending = [first.output]
    while pending:
        value = pending.pop()
        if value in outputs:
            return f"its channels reach the graph's output {value.name!r}"
        uses = list(value.uses())
        if not uses:
            return f"{value.name!r} is not used"
        for node, index in uses:
            if index == 0 and _is_homogeneous(node):
                if node.op_type == "PRelu" and (node.inputs[1] is None or node.inputs[1].const_value is None):
                    return f"the slope of {node.name} is not constant"
                pending.append(node.outputs[0])
                continue
            second = find_linear(node)
            if isinstance(second, str):
                where = f"{node.op_type} {node.name!r}"
                return (
                    f"{where} is not homogeneous by channel"
                    if second.endswith("no constant weight")
                    else f"{where}: {second}"
                )
            if second.cast is not None:
                return f"{node.name!r}: {_STORED_HALF}"
            if index != 0 or second.dequantize is not None:
                return f"{node.name!r} does not read it as an activation with a float weight"
            if second.input_channels != first.channels:
                return f"{node.name!r} reads {second.input_channels} channels and not {first.channels}"
            seconds.append(second)
    return _Link(first=first, seconds=tuple(seconds))


def _is_homogeneous(node: ir.Node) -> bool:
    """Whether f(s x) = s f(x) for each channel by itself."""
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return rule is not None and rule.scale in ("passes", "passes by channel")


def _solve(links: list[_Link], ranges: dict[ir.Value, np.ndarray]) -> list[np.ndarray]:
    """Return each link's factors, by iterating over all links until none changes any more."""
    totals = [np.ones(link.first.channels) for link in links]
    alive = [_alive(link, ranges) for link in links]
    for _ in range(_MAX_ROUNDS):
        largest = 0.0
        for link, total, keep in zip(links, totals, alive, strict=True):
            before, after = _facing(link, ranges)
            step = np.ones_like(before)
            step[keep] = (before[keep] / after[keep]) ** (0.5 * _RELAXATION)
            total *= step
            ranges[link.first.weight] /= step[:, None]
            for second in link.seconds:
                ranges[second.weight] *= _per_input(second, step, len(ranges[second.weight]))
            largest = max(largest, float(np.abs(np.log(step)).max(initial=0.0)))
        if largest < _CONVERGED:
            # Which channels are dead depends on the neighbours' scales; it must be stable, too.
            kept, alive = alive, [_alive(link, ranges) for link in links]
            if all(np.array_equal(*masks) for masks in zip(kept, alive, strict=True)):
                break
    return totals


def _facing(link: _Link, ranges: dict[ir.Value, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of each channel in the layer that makes it, and in those that read it."""
    before = ranges[link.first.weight].max(axis=1)
    after = np.max([_input_ranges(second, ranges[second.weight]) for second in link.seconds], axis=0)
    return before, after


def _alive(link: _Link, ranges: dict[ir.Value, np.ndarray]) -> np.ndarray:
    before, after = _facing(link, ranges)
    equalized = np.sqrt(before * after)
    keep: np.ndarray = equalized > _DEAD * equalized.max(initial=0.0)
    return keep


def _ranges(layer: Linear) -> np.ndarray:
    """Return the largest magnitudes `(output channels, input channels of a group)`, float64."""
    weights = np.abs(layer.array().astype(np.float64))
    kernel = tuple(range(2, weights.ndim))
    matrix: np.ndarray = weights.max(axis=kernel) if kernel else weights
    return matrix if layer.channel_axis == 0 else matrix.T.copy()


def _input_ranges(layer: Linear, ranges: np.ndarray) -> np.ndarray:
    """Return the largest magnitude for each input channel of the layer."""
    grouped: np.ndarray = ranges.reshape(layer.groups, -1, ranges.shape[1]).max(axis=1)
    return grouped.reshape(-1)


def _per_input(layer: Linear, factor: np.ndarray, rows: int) -> np.ndarray:
    """Return factors of the input channels as `(output channels, inputs of a group)`."""
    return np.repeat(factor.reshape(layer.groups, -1), rows // layer.groups, axis=0)


def _scaled_tensors(link: _Link, factor: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each tensor between the layers is divided by."""
    by_channel = factor.reshape(-1, *[1] * (constant(link.first.weight).ndim - 2))
    found: dict[str, np.ndarray] = {}
    pending = [link.first.output]
    while pending:
        value = pending.pop()
        found[value.name or ""] = by_channel
        pending += [node.outputs[0] for node, _ in value.uses() if _is_homogeneous(node)]
    return found


def _scale(link: _Link, factor: np.ndarray) -> None:
    rescale(link.first, outputs=factor)
    for second in link.seconds:
        rescale(second, inputs=factor)
