"""Criteria: in which order the channels of a group should go, and what each step costs.

Each criterion gives, for one group, an order of removal and the cumulative error after each step, relative to
the energy of the outputs of the layers that read the channels, so that groups of different layers compare.

- `second_order`: what is lost after the layers that read the channels were refitted to do without. With the
  covariance H of a layer's inputs, removing the columns S costs Σ w_Sᵀ [(H⁻¹)_SS]⁻¹ w_S over the rows w of W
  (Hassibi and Stork 1993 for single weights; Kurtic et al. 2023, ZipLM, for groups). After each removal H⁻¹
  and W are downdated, so that of two channels that do the same work one goes and the other stays.
- `activation`: Σ ‖W_S‖² E[x²], what is lost without refitting, correlations ignored.
- `magnitude`: the squared norms of the weights that make and read the channel; needs no data.
- `random`: the baseline that any criterion must beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, final, get_args

import attrs
import numpy as np

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.graph.channels.groups import ChannelGroup
from edgeinfer.graph.initializers import constant
from edgeinfer.graph.weights import Linear
from edgeinfer.numerics.fixed_order import inverse as invert
from edgeinfer.numerics.fixed_order import matmul, solve

__all__ = ["CRITERIA", "Criterion", "Ranking", "compensated", "rank", "weight_columns"]

Criterion: TypeAlias = Literal["second_order", "activation", "magnitude", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_DAMPING = 1e-3
# Compensation for lost channels must not rest on correlations that the few samples only seem to have.
_DAMPING_BY_RANK = 0.1
_BATCHES = 48


@final
@attrs.frozen(kw_only=True)
class Ranking:
    """The order in which a group's channels should go.

    Attributes:
        group: The group's name.
        order: Channel indices, first to go first.
        errors: The cumulative relative error after each removal, as long as `order`.
    """

    group: str
    order: tuple[int, ...]
    errors: tuple[float, ...]


def rank(
    group: ChannelGroup,
    layers: Mapping[str, Linear],
    moments: Mapping[str, MomentObserver],
    criterion: Criterion,
    seed: int = 0,
) -> Ranking:
    """Rank the channels of a group.

    Args:
        group: The group.
        layers: The layers of the graph by name.
        moments: The moments of the inputs of the layers that read the group; empty for criteria without data.
        criterion: Which.
        seed: For `random`.
    """
    if criterion == "second_order":
        return _second_order(group, layers, moments)
    if criterion == "activation":
        scores = _activation(group, layers, moments)
    elif criterion == "magnitude":
        scores = _magnitude(group, layers)
    else:
        scores = np.random.default_rng((seed, group.size)).random(group.size)
    order = np.argsort(scores, kind="stable")
    total = max(float(scores.sum()), 1e-30)
    return Ranking(
        group=group.name,
        order=tuple(order.tolist()),
        errors=tuple((np.cumsum(scores[order]) / total).tolist()),
    )


def weight_columns(group: ChannelGroup, layer: Linear) -> np.ndarray | None:
    """Return the columns of W (see `Layer.matrix`) that each channel occupies, (channels, columns each)."""
    weight = layer.node.inputs[1]
    assert weight is not None
    for part in group.slices:
        if part.tensor == weight.name and part.axis == layer.input_axis:
            positions = np.array(part.positions)
            if layer.kind == "Conv":
                taps = np.arange(layer.taps)
                return (positions[..., None] * layer.taps + taps).reshape(len(positions), -1)
            return positions if layer.groups == 1 else None
    return None


def compensated(layer: Linear, moments: MomentObserver, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return W and the change of b that make up for the loss of some columns as well as can be.

    W'_T = W H_:T (H_TT + λI)⁻¹ for the columns T that stay, and b takes the change of the mean.
    """
    weight = layer.matrices()
    cov, mean = moments.covariance, moments.mean
    stay = np.setdiff1d(np.arange(weight.shape[2]), columns)
    result = np.zeros_like(weight)
    for g in range(weight.shape[0]):
        size = len(cov[g])
        # The last term is for inputs that are all zero: what a dead layer makes.
        h = cov[g] + (_damping(moments, size) * np.trace(cov[g]) / size + 1e-12) * np.eye(size)
        result[g][:, stay] = solve(h[np.ix_(stay, stay)], matmul(h[stay], weight[g].T)).T
    shift = ((weight - result) * mean[:, None]).sum(2)
    return result, shift


def _damping(moments: MomentObserver, size: int) -> float:
    """Return what is added to the diagonal, relative to its mean."""
    return _DAMPING + _DAMPING_BY_RANK * size / moments.count


def _second_order(
    group: ChannelGroup, layers: Mapping[str, Linear], moments: Mapping[str, MomentObserver]
) -> Ranking:
    states = []
    for name in group.consumers:
        columns = weight_columns(group, layers[name])
        if columns is not None and name in moments:
            states.append(_State.of(layers[name], moments[name], columns))
    left = np.arange(group.size)
    # Large groups lose several channels between two downdates; the order within such a batch is by score.
    batch = max(1, group.size // _BATCHES)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while len(left):
        scores = sum((state.scores(left) for state in states), np.zeros(len(left)))
        picked = np.argsort(scores, kind="stable")[:batch]
        for index in picked:
            total += float(scores[index])
            order.append(int(left[index]))
            errors.append(total)
        for state in states:
            state.remove(left[picked])
        left = np.delete(left, picked)
    return Ranking(group=group.name, order=tuple(order), errors=tuple(errors))


@final
@attrs.define(eq=False)
class _State:
    """One layer while channels are being removed from its inputs."""

    inverse: np.ndarray  # H⁻¹, (G, K, K)
    weight: np.ndarray  # (G, R, K)
    columns: np.ndarray  # (channels, columns each)
    energy: float

    @classmethod
    def of(cls, layer: Linear, moments: MomentObserver, columns: np.ndarray) -> _State:
        weight = layer.matrices()
        cov = moments.covariance
        energy = float((matmul(weight, cov) * weight).sum())
        damp = _damping(moments, cov.shape[1]) * np.trace(cov, axis1=1, axis2=2) / cov.shape[1] + 1e-12
        inverse = invert(cov + damp[:, None, None] * np.eye(cov.shape[1]))
        return cls(inverse, weight.copy(), columns, max(energy, 1e-30))

    def scores(self, channels: np.ndarray) -> np.ndarray:
        index = self.columns[channels]
        total = np.zeros(len(channels))
        for inverse, weight in zip(self.inverse, self.weight, strict=True):
            blocks = inverse[index[:, :, None], index[:, None, :]]  # (c, s, s)
            parts = weight[:, index].transpose(1, 2, 0)  # (c, s, R)
            total += (parts * solve(blocks, parts)).sum((1, 2))
        return np.maximum(total, 0.0) / self.energy

    def remove(self, channels: np.ndarray) -> None:
        index = self.columns[channels].ravel()
        for g in range(len(self.inverse)):
            inverse, weight = self.inverse[g], self.weight[g]
            gain = solve(inverse[np.ix_(index, index)], inverse[index])  # (s, K)
            weight -= matmul(weight[:, index], gain)
            inverse -= matmul(inverse[:, index], gain)
            weight[:, index] = 0.0
            inverse[index], inverse[:, index] = 0.0, 0.0
            inverse[index, index] = 1.0


def _activation(
    group: ChannelGroup, layers: Mapping[str, Linear], moments: Mapping[str, MomentObserver]
) -> np.ndarray:
    scores = np.zeros(group.size)
    for name in group.consumers:
        columns = weight_columns(group, layers[name])
        if columns is not None and name in moments:
            weight = layers[name].matrices()
            power = np.einsum("gkk->gk", moments[name].hessian)
            parts = (np.square(weight).sum(1) * power).sum(0)
            scores += parts[columns].sum(1) / max(parts.sum(), 1e-30)
    return scores


def _magnitude(group: ChannelGroup, layers: Mapping[str, Linear]) -> np.ndarray:
    scores = np.zeros(group.size)
    weights = {layer.node.inputs[1].name: layer.weight for layer in layers.values() if layer.node.inputs[1]}
    for part in group.slices:
        if part.tensor in weights:
            array = np.moveaxis(constant(weights[part.tensor]).astype(np.float64), part.axis, 0)
            norms = np.square(array).reshape(len(array), -1).sum(1)
            scores += np.array([norms[list(p)].sum() for p in part.positions]) / max(norms.sum(), 1e-30)
    return scores
