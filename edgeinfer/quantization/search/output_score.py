"""One number that ranks int8 versions of a model by a few feeds.

The SQNR over all feeds is what users ask for, and a poor guide from few of them: behind a Softmax most feeds
are certain and hardly show any noise, and the two or three that are not make the figure. On MLPerf's ResNet-8
it put recipes in an order that more feeds turned around, at a cost of 5 dB. So for ranking

- a Softmax or Sigmoid at the end is undone: its logits show the noise in every feed, and
- the decibels of the feeds are averaged, so that no feed counts for more than another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.calibration.calibration import Calibration
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.graph.build import compile_model
from edgeinfer.graph.taps import reference_session
from edgeinfer.model.model import Model
from edgeinfer.numerics.closeness import ClosenessAccumulator
from edgeinfer.runtime.open import load

__all__ = ["Score", "Scorer", "output_sqnr_db", "run_outputs"]

Outputs = list[list[np.ndarray]]
_REFERENCE = "onnxruntime"

_TINY = 1e-30  # probabilities below it are the float format's end, not the model's opinion
_SIGMOID_END = 1e-7  # float32 does not tell a sigmoid from 0 or 1 beyond
_FLOOR = 1e-8  # of the mean power: 80 dB are as good as equal, and silence says nothing
_MOVING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@final
@attrs.frozen(kw_only=True)
class Score:
    """How close a model is to float.

    Attributes:
        sqnr_db: SQNR in dB of its worst output over all feeds.
        rank_db: The mean over the feeds of the decibels of its worst output, saturation undone: what to
            compare versions of a model by.
    """

    sqnr_db: float
    rank_db: float


@final
class Scorer:
    """Scores outputs against those of the float model.

    Args:
        model: The float model.
        reference: Its outputs, feed by feed.
    """

    def __init__(self, model: Model, reference: Outputs) -> None:
        self.reference = reference
        undo = [_inverse(value) for value in model.ir.graph.outputs]
        floats = [index for index, array in enumerate(reference[0]) if array.dtype.kind == "f"]
        # An index or a flag is right or wrong; where there are numbers, they say more.
        self._undo = [(index, undo[index]) for index in floats or range(len(undo))]

    def score(self, outputs: Outputs) -> Score:
        """Return the score of a version's outputs, feed by feed."""
        ranks = [self._rank_db(index, undo, outputs) for index, undo in self._undo]
        return Score(sqnr_db=output_sqnr_db(self.reference, outputs), rank_db=min(ranks))

    def _rank_db(self, index: int, undo: Callable[[np.ndarray], np.ndarray], outputs: Outputs) -> float:
        signal, noise = [], []
        for expected, found in zip(self.reference, outputs, strict=True):
            a, b = undo(expected[index]), undo(found[index])
            here = np.isfinite(a)
            signal.append(np.square(a[here]).sum())
            noise.append(np.square(a[here] - b[here]).sum())
        if not np.isfinite(noise).all():
            return -np.inf
        floor = _FLOOR * max(float(np.mean(signal)), np.finfo(np.float64).tiny)
        return float(np.mean(10.0 * np.log10((np.array(signal) + floor) / (np.array(noise) + floor))))


def run_outputs(
    model: Model,
    feeds: Sequence[Mapping[str, np.ndarray]] | Calibration,
    target: Target | str | QDQDialect | None = None,
) -> Outputs:
    """Run a model on feeds; return the outputs, in the signature's order, feed by feed.

    Args:
        model: The model.
        feeds: Its inputs.
        target: Where to run it. What cannot be run there runs in ONNX Runtime, as for None.
    """
    parsed = Target.parse(target) if target is not None and not isinstance(target, QDQDialect) else None
    if parsed is not None and parsed.backend != _REFERENCE:
        with contextlib.suppress(EdgeInferError):  # not here, or it does not take the model
            artifact = compile_model(model, parsed.backend, device=parsed.device or None)
            with load(artifact) as session:
                return [list(session.infer(dict(feed)).values()) for feed in feeds]
    with reference_session(model) as session:
        return [list(session.infer(dict(feed)).values()) for feed in feeds]


def output_sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Return the SQNR in dB of the worst of a model's outputs."""
    worst = np.inf
    for index in range(len(reference[0])):
        closeness = ClosenessAccumulator()
        for expected, found in zip(reference, outputs, strict=True):
            closeness.update(expected[index], found[index])
        worst = min(worst, closeness.result().sqnr_db)
    return float(worst)


def _inverse(output: ir.Value) -> Callable[[np.ndarray], np.ndarray]:
    """Return what undoes the saturating operator at an output, if there is one, in float64."""
    node = output.producer()
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
