"""The order of channels with which n of every m weights keep the most.

Which m weights compete for n places follows from the order of a layer's input channels, and that order is
free: whatever makes the channels can make them in another one. As in Pool and Yu, "Channel Permutations for
N:M Sparsity" (NeurIPS 2021), two groups of m channels at a time are divided again where that keeps more. What
is kept is counted in the energy that a weight gives to its layer's output, w² E[x²].
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import cast

import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.channel_observers import ChannelMagnitudeObserver
from edgeinfer.calibration.observers import Observer
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.graph.channels.groups import ChannelGroup, analyze
from edgeinfer.graph.channels.reorder import may_reorder, reorder
from edgeinfer.graph.weights import Linear
from edgeinfer.model.model import Model
from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["channel_order", "reorder_channels"]

_SWEEPS = 4
_PAIRS = 1024  # of groups, in one sweep
_ROWS = 512  # rows of a weight, over all layers that read the channels, tell as much as all of them
_WORTH = 1e-3  # of the energy: less is not worth a changed graph
_ALL_WAYS = 4  # larger groups have too many divisions: their channels are exchanged one for one


def reorder_channels(
    model: ir.Model,
    wanted: Mapping[str, Linear],
    n: int,
    m: int,
    report: ReportBuilder,
    *,
    statistics: Statistics | None,
    keep_nodes: AbstractSet[str],
) -> None:
    """Put the channels that sparse layers read into the order that keeps the most, in place.

    Args:
        model: The float graph. It computes the same afterwards.
        wanted: The layers that will be n:m sparse, by name.
        n: How many weights of a group stay.
        m: The size of a group.
        report: Told of every group of channels that has a new order.
        statistics: Tells the power of the inputs; None to go by the weights alone.
        keep_nodes: Layers that stay as they are.
    """
    found = analyze(model.graph)
    layers = {layer.name: layer for layer in found.layers}
    readers = {
        group.name: [layers[name] for name in group.consumers if name in wanted] for group in found.groups
    }
    read = {layer.name: layer for some in readers.values() for layer in some}
    power = _power(model, list(read.values()), statistics)
    for group in found.groups:
        touched = {*group.producers, *group.consumers}
        if touched & keep_nodes or not may_reorder(group, (layers[name] for name in touched)):
            continue
        blocks = _blocks(group, readers[group.name], m)
        if blocks is None:
            continue
        energy = np.concatenate([_energy(layer, group, power) for layer in readers[group.name]])[:, blocks]
        order = channel_order(energy, n, m)
        before, after = (1 - _kept(each, n, m) for each in (energy, energy[:, order]))
        if before - after < _WORTH:
            continue
        places = np.empty(group.size, np.int64)
        places[blocks] = blocks[order]
        reorder(model.graph, group, places)
        report.apply(
            group.producers[0],
            f"{group.size} channels in another order: {n}:{m} drops {after:.1%} of the energy of the layers "
            f"behind, not {before:.1%}",
        )


def channel_order(energy: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return the order of channels in which n of every m keep the most energy, as far as the search finds.

    Args:
        energy: The energy of each weight, (rows, channels); channels a multiple of m.
        n: How many of a group stay.
        m: The size of a group.

    Returns:
        A permutation of (channels,).
    """
    chance = np.random.default_rng(0)
    rows = energy
    if len(rows) > _ROWS:
        rows = rows[chance.choice(len(rows), _ROWS, replace=False)]
    columns = np.ascontiguousarray(rows.T, np.float32)
    order = np.arange(len(columns))
    ways = _ways(m)
    for _ in range(_SWEEPS):
        gained = 0.0
        for first, second in _pairs(len(columns) // m, chance):
            at = np.r_[first * m : first * m + m, second * m : second * m + m]
            both = order[at]
            kept = _largest(columns[both], ways[:, :m], n) + _largest(columns[both], ways[:, m:], n)
            best = int(kept.argmax())
            if kept[best] > kept[0] * (1 + 1e-6):
                order[at] = both[ways[best]]
                gained += float(kept[best] - kept[0])
        if gained < _WORTH * float(columns.sum(dtype=np.float64)):
            break
    return order


def _pairs(groups: int, chance: np.random.Generator) -> list[tuple[int, int]]:
    """Return pairs of groups: all of them, or each group with some at random where they are too many."""
    if groups * (groups - 1) // 2 <= _PAIRS:
        return list(itertools.combinations(range(groups), 2))
    apart = chance.choice(np.arange(1, groups), max(1, _PAIRS // groups), replace=False)
    return [(first, int(first + step) % groups) for step in apart for first in range(groups)]


def _ways(m: int) -> np.ndarray:
    """Return ways to divide 2 m channels into two groups of m, (ways, 2 m); the first leaves them."""
    if m <= _ALL_WAYS:
        firsts = [each for each in itertools.combinations(range(2 * m), m) if 0 in each]
        return np.array([[*first, *sorted({*range(2 * m)} - {*first})] for first in firsts])
    ways = [list(range(2 * m))]
    for one, other in itertools.product(range(m), range(m, 2 * m)):
        swapped = list(range(2 * m))
        swapped[one], swapped[other] = other, one
        ways.append(swapped)
    return np.array(ways)


def _largest(columns: np.ndarray, ways: np.ndarray, n: int) -> np.ndarray:
    """Return the sum of the n largest of each row, over all rows, for each choice of columns."""
    values = [columns[ways[:, index]] for index in range(ways.shape[1])]
    for index in range(n):
        for other in range(index + 1, len(values)):
            high = np.maximum(values[index], values[other])
            values[other] = np.minimum(values[index], values[other])
            values[index] = high
    return np.asarray(sum(value.sum(axis=1, dtype=np.float64) for value in values[:n]))


def _kept(energy: np.ndarray, n: int, m: int) -> float:
    groups = np.sort(energy.reshape(len(energy), -1, m), axis=2)
    return float(groups[..., m - n :].sum() / max(float(energy.sum()), np.finfo(np.float64).tiny))


def _positions(layer: Linear, group: ChannelGroup) -> np.ndarray | None:
    """Return where a layer's weight has each channel of a group, (size,); None if nowhere."""
    for part in group.slices:
        if part.tensor == layer.weight.name and part.axis == layer.input_axis:
            return np.array(part.positions)[:, 0]
    return None


def _blocks(group: ChannelGroup, readers: list[Linear], m: int) -> np.ndarray | None:
    """Return the channels in an order in which each m compete in every reader; None if there is none."""
    found = [_positions(layer, group) for layer in readers]
    places = [each for each in found if each is not None]
    if not places or len(places) < len(found) or group.size % m:
        return None
    blocks = np.argsort(places[0], kind="stable")
    for each in places:
        stripes = each[blocks].reshape(-1, m) // m
        if (stripes != stripes[:, :1]).any():
            return None
    return blocks


def _power(
    model: ir.Model, layers: Collection[Linear], statistics: Statistics | None
) -> Mapping[str, np.ndarray]:
    """Return E[x²] of the input channels of each layer, by the layer's name."""
    if statistics is None or not layers:
        return {}
    needs: dict[str, list[Observer]] = {}
    for layer in layers:
        observer = ChannelMagnitudeObserver(1 if layer.is_conv else -1)
        needs.setdefault(layer.input.name or "", []).append(observer)
    gathered = {name: iter(seen) for name, seen in statistics.gather(Model(model.clone()), needs).items()}
    return {
        layer.name: cast("ChannelMagnitudeObserver", next(gathered[layer.input.name or ""])).mean_square
        for layer in layers
    }


def _energy(layer: Linear, group: ChannelGroup, power: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the energy of a layer's weights for the channels of a group, as parts of all of it."""
    places = _positions(layer, group)
    assert places is not None
    weight = np.moveaxis(layer.array().astype(np.float64), layer.input_axis, -1)
    energy: np.ndarray = weight.reshape(-1, weight.shape[-1]) ** 2
    if layer.name in power:
        energy = energy * power[layer.name]
    chosen: np.ndarray = energy[:, places]
    return chosen / max(float(chosen.sum()), float(np.finfo(np.float64).tiny))
