"""Two figures for one version of a model, from a few feeds: how close it is to float, and what to rank it by.

Few feeds tell the closeness on others with an error, and of several versions the one that was lucky looks
best. So what is compared, and what a tolerance is held to, is the lower end of an interval over the feeds:
with 95 % the figure on all feeds of this kind is above it.

The SQNR over all feeds is what users ask for, and a poor guide from few of them: behind a Softmax most feeds
are certain and hardly show any noise, and the two or three that are not make the figure. On MLPerf's ResNet-8
it put recipes in an order that more feeds turned around, at a cost of 5 dB. So for ranking

- a Softmax or Sigmoid at the end is undone: its logits show the noise in every feed, and
- the decibels of the feeds are averaged, so that no feed counts for more than another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.model.model import Model
from edgeinfer.numerics.closeness import ClosenessAccumulator
from edgeinfer.values import as_tuple

__all__ = ["BROKEN", "Outputs", "Score", "Scorer", "output_sqnr_db"]

Outputs: TypeAlias = "Sequence[Sequence[np.ndarray]]"

_TINY = 1e-30  # probabilities below it are the float format's end, not the model's opinion
_SIGMOID_END = 1e-7  # float32 does not tell a sigmoid from 0 or 1 beyond
_FLOOR = 1e-8  # of the mean power: 80 dB are as good as equal, and silence says nothing
_MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_Z = 1.6449  # one-sided 95 % of the normal distribution


@final
@attrs.frozen(kw_only=True)
class Score:
    """How close a model is to float.

    Attributes:
        sqnr_db: SQNR in dB of its worst output over all feeds.
        lower_db: The lower end of the interval of that, 95 % one-sided, which other feeds of the same kind
            will hardly go below.
        mean_db: The mean over the feeds of the decibels of its worst output, saturation undone.
        rank_db: The lower end of the interval of that: what to compare versions of a model by.
        noise: The noise of its worst output, feed by feed, as a share of the mean signal of a feed.
    """

    sqnr_db: float
    lower_db: float
    mean_db: float
    rank_db: float
    noise: tuple[float, ...] = attrs.field(default=(), converter=as_tuple, repr=False)


BROKEN = Score(sqnr_db=-math.inf, lower_db=-math.inf, mean_db=-math.inf, rank_db=-math.inf)


@final
class Scorer:
    """Scores outputs against those of the float model.

    Args:
        model: The float model.
        reference: What it gives for the scored tensors, feed by feed.
        names: The scored tensors; None for its outputs.
    """

    def __init__(self, model: Model, reference: Outputs, names: Sequence[str] | None = None) -> None:
        self.reference = reference
        values = {value.name: value for node in model.ir.graph for value in node.outputs}
        scored = list(model.ir.graph.outputs) if names is None else [values.get(name) for name in names]
        undo = [_inverse(value) for value in scored]
        floats = [index for index, array in enumerate(reference[0]) if array.dtype.kind == "f"]
        # An index or a flag is right or wrong; where there are numbers, they say more.
        self._undo = [(index, undo[index]) for index in floats or range(len(undo))]

    def score(self, outputs: Outputs) -> Score:
        """Return the score of a version's outputs, feed by feed."""
        ranks = [self._rank_db(index, undo, outputs) for index, undo in self._undo]
        pooled = [_pooled_db(self.reference, outputs, index) for index in range(len(self.reference[0]))]
        worst = min(pooled, key=lambda one: one[1])
        return Score(
            sqnr_db=min(db for db, *_ in pooled),
            lower_db=worst[1],
            noise=worst[2],
            mean_db=min(db for db, _ in ranks),
            rank_db=min(db for _, db in ranks),
        )

    def only(self, feeds: Sequence[int]) -> Scorer:
        """Return a scorer of some of the feeds, by their numbers."""
        scorer = Scorer.__new__(Scorer)
        scorer.reference, scorer._undo = [self.reference[feed] for feed in feeds], self._undo
        return scorer

    def _rank_db(
        self, index: int, undo: Callable[[np.ndarray], np.ndarray], outputs: Outputs
    ) -> tuple[float, float]:
        """Return the mean of the decibels of one output over the feeds, and the lower end of its interval."""
        signal, noise = [], []
        for expected, found in zip(self.reference, outputs, strict=True):
            a, b = undo(expected[index]), undo(found[index])
            here = np.isfinite(a)
            signal.append(np.square(a[here]).sum())
            noise.append(np.square(a[here] - b[here]).sum())
        if not np.isfinite(noise).all():
            return -np.inf, -np.inf
        floor = _FLOOR * max(float(np.mean(signal)), np.finfo(np.float64).tiny)
        pairs = np.array([(s, n) for s, n in zip(signal, noise, strict=True) if max(s, n) > floor])
        if not len(pairs):
            return (-10.0 * math.log10(_FLOOR),) * 2
        decibels = 10.0 * np.log10((pairs[:, 0] + floor) / (pairs[:, 1] + floor))
        mean = float(np.mean(decibels))
        return mean, mean - _half_width(decibels)


def output_sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Return the SQNR in dB of the worst of a model's outputs."""
    return min(_pooled_db(reference, outputs, index)[0] for index in range(len(reference[0])))


def _pooled_db(reference: Outputs, outputs: Outputs, index: int) -> tuple[float, float, list[float]]:
    """Return the SQNR of one output over all feeds, the lower end of its interval, and its noise by feed.

    The figure is a ratio of two sums, whose logarithm varies like `signal / mean signal - noise / mean noise`
    from feed to feed (the delta method).
    """
    total = ClosenessAccumulator()
    signal, noise = [], []
    for expected, found in zip(reference, outputs, strict=True):
        total.update(expected[index], found[index])
        a = np.asarray(expected[index]).astype(np.float64).ravel()
        difference = a - np.asarray(found[index]).astype(np.float64).ravel()
        signal.append(float(np.square(a[np.isfinite(a)]).sum()))
        noise.append(float(np.square(difference[np.isfinite(a)]).sum()))
    sqnr_db = float(total.result().sqnr_db)
    if not math.isfinite(sqnr_db) or not sum(signal):
        return sqnr_db, sqnr_db, []
    varies = np.array(signal) / np.mean(signal) - np.array(noise) / np.mean(noise)
    lower_db = sqnr_db - 10.0 / math.log(10.0) * _half_width(varies)
    return sqnr_db, lower_db, [each / float(np.mean(signal)) for each in noise]


def _half_width(values: np.ndarray) -> float:
    """Return how far below a mean its lower end is, by Student's distribution (Abramowitz, Stegun 26.7.5)."""
    count = len(values)
    if count < 2:
        return 0.0
    free = count - 1
    z = _Z
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return float(t * np.std(values, ddof=1) / math.sqrt(count))


def _inverse(output: ir.Value | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return what undoes the saturating operator at an output, if there is one, in float64."""
    node = output.producer() if output is not None else None
    while node is not None and node.op_type in _MOVING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type == "Softmax":
        return _log
    if node is not None and node.op_type == "Sigmoid":
        return _logit
    return _as_is


def _as_is(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _log(array: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(array.astype(np.float64), _TINY))


def _logit(array: np.ndarray) -> np.ndarray:
    p = np.clip(array.astype(np.float64), _SIGMOID_END, 1.0 - _SIGMOID_END)
    return np.log(p / (1.0 - p))
