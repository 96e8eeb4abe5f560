"""How close to float a candidate's outputs are expected to be: the guess that orders what is made first.

Noise powers at the output nearly add up, so the noise of pruning and that of quantizing are added. Each is a
rule of thumb at first, and is scaled to what the models that were made really showed.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np

from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.state import State

__all__ = ["ClosenessGuess"]

_DB = {"float32": 120.0, "float16": 60.0, "int8": 22.0, "dynamic": 25.0, "weights8": 35.0}
_EFFORT_DB = {"": 0.0, "plain": -3.0, "corrected": 0.0, "searched": 1.5}
_NARROW_DB = 45.0  # the type of eight bits of mantissa, through some dozen layers
_METHOD_DB = {"": 0.0, "mse": 0.0, "minmax": -0.5, "percentile": -1.0}


@final
class ClosenessGuess:
    """Guesses the closeness of candidates, in dB, from the models that were made.

    Args:
        state: What is known.
    """

    def __init__(self, state: State) -> None:
        table = state.sensitivity or ()
        self._noise = {node: 10 ** (-sqnr_db / 10) for node, sqnr_db in table if math.isfinite(sqnr_db)}
        self._all = sum(self._noise.values())
        made = [each for each in state.made.values() if each.outcome == "ok" and each.rank_db is not None]
        self._scales = {"precision": 0.0, "prune": 0.0}
        whole = [each for each in made if not each.candidate.prune and each.candidate.precision == "int8"]
        self._scales["precision"] = _median(
            [
                each.rank_db - _to_db(self._precision(each.candidate))
                for each in whole
                if each.rank_db is not None
            ]
        )
        pruned = [each for each in made if each.candidate.prune and each.rank_db is not None]
        self._scales["prune"] = _median(
            [each.rank_db - _to_db(_pruning(each.candidate)) for each in pruned if each.rank_db is not None]
        )
        self._made = {each.candidate.model_key: each.rank_db for each in made}

    def db(self, candidate: Candidate) -> float:
        """Return the closeness that is known, or expected."""
        known = self._made.get(candidate.model_key)
        if known is not None:
            return known
        precision = self._precision(candidate) * 10 ** (-self._scales["precision"] / 10)
        pruning = _pruning(candidate) * 10 ** (-self._scales["prune"] / 10)
        return _to_db(precision + pruning)

    def _precision(self, candidate: Candidate) -> float:
        db = _DB[candidate.precision] + _EFFORT_DB[candidate.effort] + _METHOD_DB.get(candidate.method, 0.0)
        left = 1.0
        if candidate.keep_float and self._all:
            left -= sum(self._noise.get(node, 0.0) for node in candidate.keep_float) / self._all
        narrow = 10 ** (-_NARROW_DB / 10) if candidate.narrow else 0.0
        return float(10 ** (-db / 10) * max(left, 0.01)) + narrow


def _pruning(candidate: Candidate) -> float:
    """The noise of pruning with refitted weights grows fast with what is removed."""
    return float(0.8 * (1 - candidate.keep) ** 1.5) if candidate.prune else 0.0


def _to_db(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-12))


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0
