"""How much the model's outputs suffer when one group is pruned: measured, not guessed.

The local error of a layer says in which order its channels should go, but not how much the layer matters.
So for a few levels of each group, the layers that read it are compensated in closed form, the model is run,
and the error of its outputs is measured. Between the levels the local curve is scaled to fit.

The compensation of a layer with many inputs overfits a few samples: judged on the same samples, wide
layers near the outputs seem to be free (SqueezeNet and 50 images: a fifth of the error on others). So the
samples are in two folds, and what is judged on one was compensated from the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.display import track
from edgeinfer.graph.channels.groups import ChannelGroup
from edgeinfer.graph.data_sizes import data_dependent_sizes
from edgeinfer.graph.layers import find_layers
from edgeinfer.graph.weights import Linear
from edgeinfer.pruning.budget.criteria import Ranking, compensated, weight_columns
from edgeinfer.pruning.reconstruction.frontier import Frontier, cuts, run, tap

__all__ = ["Fold", "compensate", "measured_errors", "output_error", "plan_error", "scored_outputs"]

_FRACTIONS = (0.125, 0.25, 0.5, 0.75)
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})


@final
@attrs.frozen(kw_only=True, eq=False)
class Fold:
    """Samples to judge on, and what is known from others.

    Attributes:
        feeds: The samples.
        moments: The moments of the inputs of the layers that read the groups, by name, of other samples.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    moments: Mapping[str, MomentObserver]


def scored_outputs(model: ir.Model) -> tuple[list[str], tuple[str, ...]]:
    """Return the tensors whose error counts, and what to say of outputs that cannot be compared.

    Those are the outputs, before a Softmax or Sigmoid, which saturate. In place of texts, indices, and
    tensors whose size depends on the data, the float tensors in front of them are taken.

    Args:
        model: The graph, its shapes inferred.
    """
    dependent = data_dependent_sizes(model.graph)
    found: dict[ir.Value, None] = {}
    notes = []
    for output in model.graph.outputs:
        front = _comparable(output, dependent)
        found.update(front)
        if output not in front:
            names = ", ".join(repr(value.name) for value in front) or "nothing, for none is comparable"
            reason = "its size depends on the data" if output in dependent else "it is no float tensor"
            notes.append(f"output {output.name!r} is judged by {names}: {reason}")
    return list(dict.fromkeys(_before_saturation(value).name or "" for value in found)), tuple(notes)


def _comparable(value: ir.Value, dependent: Mapping[ir.Value, str]) -> dict[ir.Value, None]:
    """Return a tensor, or the nearest ones before it, that can be compared element by element."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        at = pending.pop()
        node = at.producer()
        if node is None or at in seen:  # inputs and weights say nothing of a change
            continue
        seen.add(at)
        if at.dtype in _FLOATS and at not in dependent:
            found[at] = None
        else:
            pending += [before for before in node.inputs if before is not None]
    return found


def _before_saturation(value: ir.Value) -> ir.Value:
    node = value.producer()
    if node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid") and node.inputs[0]:
        return node.inputs[0]
    return value


def output_error(model: ir.Model, wanted: Sequence[Mapping[str, np.ndarray]], frontier: Frontier) -> float:
    """Return the mean over outputs of Σ(y - ŷ)² / Σ(y - ȳ)², the model being run from a frontier."""
    names = list(wanted[0])
    error, energy = np.zeros(len(names)), np.zeros(len(names))
    for expected, got in zip(wanted, frontier.tap(model, names), strict=True):
        for index, name in enumerate(names):
            y = expected[name].astype(np.float64)
            error[index] += np.square(y - got[name]).sum()
            spread = y.ndim > 0 and y.shape[-1] > 1  # else the one number is what counts
            energy[index] += np.square(y - y.mean(axis=-1, keepdims=True) if spread else y).sum()
    return float((error / np.maximum(energy, 1e-30)).mean())


def measured_errors(
    model: ir.Model,
    groups: Sequence[ChannelGroup],
    rankings: Mapping[str, Ranking],
    folds: Sequence[Fold],
    *,
    progress: bool | None = None,
) -> dict[str, list[float]]:
    """Return by group the cumulative error of the outputs after each removal, the mean over folds.

    Args:
        model: The float graph that was analyzed.
        groups: The groups.
        rankings: Their rankings.
        folds: Small parts of the calibration.
        progress: Show it.
    """
    expected = [_expected(model, fold) for fold in folds]
    frontiers = [Frontier(feeds=fold.feeds) for fold in folds]
    result = {}
    order = {node.name: index for index, node in enumerate(model.graph)}
    passed = cuts(model.graph)
    first = {group.name: min((order[name] for name in group.consumers), default=0) for group in groups}
    for group in track(
        sorted(groups, key=lambda g: first[g.name]), "measuring sensitivity", progress=progress
    ):
        before = [name for name, index in passed.items() if index < first[group.name]]
        for frontier in frontiers if before else ():
            frontier.advance(model, before[-1])
        local = np.array(rankings[group.name].errors)
        counts = sorted(
            {max(1, round(group.size * f)) for f in _FRACTIONS if round(group.size * f) < group.size}
        )
        points = [(0, 0.0)]
        for count in counts or [1]:
            removed = {group.name: rankings[group.name].order[:count]}
            errors = [
                output_error(_without(model, [group], removed, fold.moments), wanted, frontier)
                for fold, wanted, frontier in zip(folds, expected, frontiers, strict=True)
            ]
            points.append((count, sum(errors) / len(errors)))
        result[group.name] = _interpolate(local, points)
    return result


def _expected(model: ir.Model, fold: Fold) -> list[dict[str, np.ndarray]]:
    """Return what the float model answers to the samples of a fold."""
    with tap(model, scored_outputs(model)[0]) as session:
        return list(run(session, fold.feeds))


def _interpolate(local: np.ndarray, points: Sequence[tuple[int, float]]) -> list[float]:
    """Follow the local curve's shape through the measured points; errors never fall."""
    curve = np.zeros(len(local) + 1)
    padded = np.concatenate([[0.0], local])
    for (a, low), (b, high) in itertools.pairwise(points):
        high = max(high, low)
        span = padded[b] - padded[a]
        part = (padded[a : b + 1] - padded[a]) / span if span > 0 else np.linspace(0, 1, b - a + 1)
        curve[a : b + 1] = low + (high - low) * part
    last, top = points[-1]
    if last < len(local):
        scale = top / padded[last] if padded[last] > 0 else 1.0
        curve[last:] = top + (padded[last:] - padded[last]) * scale
    return [float(error) for error in np.maximum.accumulate(curve)[1:]]


def plan_error(
    model: ir.Model,
    groups: Sequence[ChannelGroup],
    removed: Mapping[str, Sequence[int]],
    folds: Sequence[Fold],
) -> float:
    """Return the error of the outputs when channels of several groups are gone, see `measured_errors`."""
    errors = [
        output_error(
            _without(model, groups, removed, fold.moments),
            _expected(model, fold),
            Frontier(feeds=fold.feeds),
        )
        for fold in folds
    ]
    return sum(errors) / len(errors)


def _without(
    model: ir.Model,
    groups: Sequence[ChannelGroup],
    removed: Mapping[str, Sequence[int]],
    moments: Mapping[str, MomentObserver],
) -> ir.Model:
    """Return the graph with some channels unread, and the layers that read them compensated."""
    work = model.clone()
    compensate(work, groups, removed, moments)
    return work


def compensate(
    model: ir.Model,
    groups: Sequence[ChannelGroup],
    removed: Mapping[str, Sequence[int]],
    moments: Mapping[str, MomentObserver],
    *,
    new_biases: bool = True,
) -> None:
    """Let the layers of a graph do without some channels, in place; shapes stay.

    Args:
        model: The graph.
        groups: Its groups.
        removed: Channels by group name.
        moments: The moments of the inputs of the layers that read them, by name; others are left.
        new_biases: Give layers that have no bias of their own one; its channels are in no group.
    """
    layers: dict[str, Linear] = {layer.name: layer for layer in find_layers(model.graph)}
    lost: dict[str, list[np.ndarray]] = {}
    for group in groups:
        for name in group.consumers if removed.get(group.name) else ():
            columns = weight_columns(group, layers[name])
            if columns is not None and name in moments:
                lost.setdefault(name, []).append(columns[list(removed[group.name])].ravel())
    for name, parts in lost.items():
        layer = layers[name]
        if layer.shared:
            continue
        matrix, shift = compensated(layer, moments[name], np.concatenate(parts))
        layer.write(matrix)
        if layer.kind != "ConvTranspose" and layer.takes_bias and (new_biases or layer.owns_bias):
            layer.write_bias(layer.bias_vector() + shift.reshape(-1))
