"""What a candidate will take, scaled from the measured baselines of the same model (basis `scaled`).

The float and the int8 model were measured with each set of options. A candidate lies between them by the
multiply-accumulates of the layers that stay in float. What pruning channels leaves of the time is priced by
the kernels of the model (`edgeinfer.estimate`) when it is prepared. As candidates are measured, their errors
correct those that are alike, and the band narrows to what the estimate was really off by.
"""

from __future__ import annotations

import math
from typing import final

import attrs
import numpy as np

from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.space import FLOAT
from edgeinfer.tuning.state import State

__all__ = ["Estimate", "Estimator"]

# What stays of the time, whatever is pruned, where kernels are not priced: calls, moving data.
_FIXED_PART = 0.25
_BAND = 0.3
_LEAST_BAND = 0.08
_LEAST_ERRORS = 4  # to trust their quantile
# Of the float time, before one was measured.
_NARROW = 0.7
_PRIOR = {"float16": 0.6, "dynamic": 0.7, "weights8": 1.0}


@final
@attrs.frozen(kw_only=True)
class Estimate:
    """A latency in ms, and the relative band in which the truth is expected; how it was come by."""

    latency_ms: float
    band: float
    basis: str = "scaled"


@final
class Estimator:
    """Estimates candidates from what was measured.

    Args:
        state: With measured baselines.
        baselines: The candidates of `Space.baselines`, by index.

    Attributes:
        band: How far off an estimate may be, as a part of it: nine of ten were not further off.
    """

    def __init__(self, state: State, baselines: tuple[Candidate, ...]) -> None:
        self._macs = {layer.node: layer.macs for layer in state.layers or ()}
        self._total = sum(self._macs.values()) or 1
        self._pruned = {float(keep): part for keep, part in state.prepared.get("pruned", {}).items()}
        self._times: dict[tuple[str, str], float] = {}
        # Their estimate is what was measured of them, so they say nothing about the others'.
        self._references = {index for index, candidate in enumerate(baselines) if not candidate.narrow}
        for index, candidate in enumerate(baselines):
            found = state.latency_ms(index)
            # The float model with fixed shapes comes later: where it is there, all candidates are like it.
            if found is not None and not candidate.narrow:
                self._times[candidate.precision, repr(candidate.options)] = found
        self._float = state.latency_ms(FLOAT)
        self.band = _BAND
        self._factors = self._learn(state)

    def best_options(self, precision: str, options: tuple[object, ...]) -> int:
        """Return the place of the set of options that the nearest baseline was fastest with."""
        near = "int8" if precision == "int8" else "float32"
        times = [self._times.get((near, repr(each)), math.inf) for each in options]
        # The default wins unless another one is clearly faster.
        best = int(np.argmin(times))
        return best if times[best] < 0.97 * times[0] else 0

    def estimate(self, candidate: Candidate) -> Estimate | None:
        """Return what a candidate will take; None where no baseline tells."""
        raw = self._raw(candidate)
        if raw is None:
            return None
        return Estimate(latency_ms=raw * self._factors.get(_kind(candidate), 1.0), band=self.band)

    def _learn(self, state: State) -> dict[str, float]:
        """Return by what the estimates of each kind are to be multiplied; sets the band."""
        corrections: dict[str, list[float]] = {}
        errors: list[float] = []
        for made in state.made.values():
            measured = state.latency_ms(made.trial)
            raw = self._raw(made.candidate)
            if measured is None or raw is None or made.trial in self._references:
                continue
            error = math.log(measured / raw)
            known = corrections.setdefault(_kind(made.candidate), [])
            errors.append(error - (float(np.median(known)) if known else 0.0))
            known.append(error)
        if len(errors) >= _LEAST_ERRORS:
            self.band = max(_LEAST_BAND, min(_BAND, float(np.quantile(np.abs(errors), 0.9))))
        return {kind: math.exp(float(np.median(known))) for kind, known in corrections.items()}

    def _raw(self, candidate: Candidate) -> float | None:
        if self._float is None:
            return None
        in_float = self._times.get(("float32", repr(candidate.options)), self._float)
        if candidate.precision == "int8":
            in_int8 = self._times.get(("int8", repr(candidate.options)))
            if in_int8 is None:
                return None
            part = sum(self._macs.get(node, 0) for node in candidate.keep_float) / self._total
            time = in_int8 + part * (in_float - in_int8)
        else:
            time = in_float * _PRIOR.get(candidate.precision, 1.0) * (_NARROW if candidate.narrow else 1.0)
        priced = self._pruned.get(candidate.keep) if candidate.prune == "channels" else None
        return time * (_FIXED_PART + (1 - _FIXED_PART) * candidate.keep if priced is None else priced)


def _kind(candidate: Candidate) -> str:
    """What is corrected together."""
    narrow = repr(candidate.narrow) if candidate.narrow else ""
    return ", ".join(filter(None, (candidate.precision, narrow, candidate.prune)))
