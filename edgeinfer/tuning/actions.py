"""What a tuning run is about, and the steps that it consists of."""

from __future__ import annotations

from typing import TypeAlias, final

import attrs

from edgeinfer.budget import Budget
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.space import Space
from edgeinfer.values import as_tuple

__all__ = [
    "SAMPLERS",
    "Action",
    "Evaluate",
    "Finish",
    "Make",
    "MeasureMemory",
    "MeasureSensitivity",
    "Prepare",
    "Problem",
    "Time",
]

SAMPLERS = ("built-in", "optuna")


@final
@attrs.frozen(kw_only=True)
class Problem:
    """What a run is about, as far as decisions depend on it.

    Attributes:
        budget: The limits.
        space: Precisions and options; what the model adds to it is in the journal.
        seed: Of all draws.
        seconds: How long tuning may take; None: as many models as is usual.
        evaluates: Whether there is a metric.
        sampler: One of `SAMPLERS`: what proposes the next candidate.
        batches: Sizes of the batch, the smallest first, which is searched with; the others are measured of
            what is left then. Empty: the feeds' is the only one.
    """

    budget: Budget
    space: Space
    seed: int = 0
    seconds: float | None = None
    evaluates: bool = False
    sampler: str = attrs.field(default="built-in", validator=attrs.validators.in_(SAMPLERS))
    batches: tuple[int, ...] = attrs.field(default=(), converter=as_tuple)


@final
@attrs.frozen
class Prepare:
    """Simplify and fuse the model, look what can be pruned, and keep the feeds for the children."""


@final
@attrs.frozen
class Make:
    """Make the model of a candidate and look how close it is."""

    trial: int
    candidate: Candidate


@final
@attrs.frozen
class Time:
    """Time candidates in turns."""

    name: str
    trials: tuple[tuple[int, Candidate], ...]
    runs: int


@final
@attrs.frozen
class MeasureSensitivity:
    """Quantize one layer at a time."""


@final
@attrs.frozen
class Evaluate:
    """Ask the user's metric."""

    trial: int
    candidate: Candidate


@final
@attrs.frozen
class MeasureMemory:
    """Measure peak memory."""

    trial: int
    candidate: Candidate


@final
@attrs.frozen
class Finish:
    """Nothing is left to do."""


Action: TypeAlias = "Prepare | Make | Time | MeasureSensitivity | Evaluate | MeasureMemory | Finish"
