"""`State`: what a journal says, folded into one value. Nothing else is known about a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, final

import attrs

from edgeinfer.artifact.decode import decode
from edgeinfer.errors import TuningError
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.values import as_tuple

__all__ = ["PRESSURE_PERCENT", "LayerWork", "Made", "Rung", "State", "Timing"]

T = TypeVar("T")
# Above this share of time in which some task waited for a processor, the clock on the wall is not believed.
PRESSURE_PERCENT = 10.0


@final
@attrs.frozen(kw_only=True)
class LayerWork:
    """One layer of the prepared float model: its name, operator and multiply-accumulates."""

    node: str
    op_type: str
    macs: int


@final
@attrs.frozen(kw_only=True)
class Made:
    """A model that was made, or why it was not.

    Attributes:
        trial: The index of the candidate.
        candidate: The candidate.
        outcome: `ok`, `failed`, `crashed`, `hung`, `out_of_memory` or `refused`.
        reason: Why it is not `ok`.
        digest: The model's digest.
        sqnr_db: SQNR of its worst output against the original model, on a few feeds.
        rank_db: What models are ranked by where feeds are few (`quantization.search.output_score`).
        macs: Its multiply-accumulates.
        weight_bytes: The size of its weights.
        float_layers: Which layers compute in float, where others compute in integers.
        seconds: How long it took.
        notes: What else there is to say.
    """

    trial: int
    candidate: Candidate
    outcome: str
    reason: str = ""
    digest: str = ""
    sqnr_db: float | None = None
    rank_db: float | None = None
    macs: int | None = None
    weight_bytes: int | None = None
    float_layers: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    seconds: float = 0.0
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)


@final
@attrs.frozen(kw_only=True)
class Timing:
    """How fast one candidate was, measured in turns with others.

    Attributes:
        outcome: As for `Made`.
        reason: Why it is not `ok`.
        n: How many inferences were measured.
        wall_p50_ms: The median latency.
        wall_p99_ms: The 99th percentile.
        cpu_p50_ms: Processor time of an inference (`turns`); None where it is not the latency.
        cpu_p99_ms: The 99th percentile of it.
        disk_bytes: The size of the artifact.
        latencies_ms: Latencies, thinned out, for the picture.
    """

    outcome: str
    reason: str = ""
    n: int = 0
    wall_p50_ms: float | None = None
    wall_p99_ms: float | None = None
    cpu_p50_ms: float | None = None
    cpu_p99_ms: float | None = None
    disk_bytes: int | None = None
    latencies_ms: tuple[float, ...] = attrs.field(default=(), converter=as_tuple, repr=False)


@final
@attrs.frozen(kw_only=True)
class Rung:
    """Several candidates, measured in turns.

    Attributes:
        name: `baseline`, `probe`, or `halving`.
        timings: By the index of the candidate.
        pressure: The share of time in percent in which some task waited for a processor; None: not told.
        waited_s: How long it was waited for that to end.
    """

    name: str
    timings: Mapping[int, Timing]
    pressure: float | None = None
    waited_s: float = 0.0


@final
@attrs.define(kw_only=True)
class State:
    """What happened so far. Made by `State.of`; not changed afterwards.

    Attributes:
        start: The first record: what the run is about.
        layers: The layers of the prepared model; None before it is prepared.
        prunes: What of it can be pruned.
        prepared: The record of the preparation.
        made: By `Candidate.model_key`.
        rungs: In order.
        sensitivity: Nodes with their SQNR in dB, lowest first; None before it was tried.
        metrics: The user's metric by index; None where it failed.
        failures: Why it failed, by index.
        attempts: How often the evaluation of a candidate began.
        peaks: Peak memory by index; None where it could not be measured.
        layer_us: Microseconds of each layer by the index of the candidate.
        seconds: What everything took.
        ended: Whether it came to its end.
    """

    start: Mapping[str, Any] = attrs.field(factory=dict)
    layers: tuple[LayerWork, ...] | None = None
    prunes: tuple[str, ...] = ()
    prepared: Mapping[str, Any] = attrs.field(factory=dict)
    made: dict[str, Made] = attrs.field(factory=dict)
    rungs: list[Rung] = attrs.field(factory=list)
    sensitivity: tuple[tuple[str, float], ...] | None = None
    metrics: dict[int, float | None] = attrs.field(factory=dict)
    failures: dict[int, str] = attrs.field(factory=dict)
    attempts: dict[int, int] = attrs.field(factory=dict)
    peaks: dict[int, int | None] = attrs.field(factory=dict)
    layer_us: dict[int, Mapping[str, float]] = attrs.field(factory=dict)
    seconds: float = 0.0
    ended: bool = False

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> State:
        """Fold the records of a journal.

        Raises:
            TuningError: A record is none that a run writes.
        """
        state = cls()
        for number, record in enumerate(records, 1):
            try:
                _FOLD[record["kind"]](state, record)
                state.seconds += decode(float, record.get("seconds", 0.0))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise TuningError(
                    "The journal has a record that no run of this version writes.",
                    where=f"record {number}",
                    found=f"{type(error).__name__}: {error}",
                    hint="Go on with the version that began it, or begin a new journal.",
                ) from error
        return state

    @property
    def timings(self) -> dict[int, Timing]:
        """The last timing of each candidate that was measured, by index."""
        return {index: timing for rung in self.rungs for index, timing in rung.timings.items()}

    @property
    def pressed(self) -> bool:
        """Whether the machine was under pressure while something was measured."""
        return any((rung.pressure or 0.0) > PRESSURE_PERCENT for rung in self.rungs)

    @property
    def clock(self) -> str:
        """By which clock candidates are compared: `processor` under pressure, where it is known; `wall`."""
        fine = [timing for timing in self.timings.values() if timing.outcome == "ok"]
        known = bool(fine) and all(timing.cpu_p50_ms is not None for timing in fine)
        return "processor" if self.pressed and known else "wall"

    def latency_ms(self, index: int, percent: int = 50) -> float | None:
        """Return the 50th or 99th percentile of a candidate's latency by the clock of the run; or None."""
        timing = self.timings.get(index)
        if timing is None or timing.outcome != "ok":
            return None
        prefix = "cpu" if self.clock == "processor" else "wall"
        value: float | None = getattr(timing, f"{prefix}_p{percent}_ms")
        return value


@attrs.frozen
class _Prepared:
    layers: tuple[tuple[Any, ...], ...]
    prunes: tuple[str, ...]


@attrs.frozen
class _Sensitivity:
    layers: tuple[tuple[Any, ...], ...]


@attrs.frozen
class _Evaluated:
    trial: int
    metric: float | None = None
    reason: str | None = None


@attrs.frozen
class _Memory:
    trial: int
    peak_bytes: int | None


@attrs.frozen
class _Layers:
    trial: int
    us: Mapping[str, float]


def _start(state: State, record: Mapping[str, Any]) -> None:
    state.start = record


def _prepared(state: State, record: Mapping[str, Any]) -> None:
    found = _read(_Prepared, record)
    state.prepared = record
    state.layers = tuple(
        _read(LayerWork, {"node": node, "op_type": op_type, "macs": macs})
        for node, op_type, macs in found.layers
    )
    state.prunes = found.prunes


def _made(state: State, record: Mapping[str, Any]) -> None:
    made = _read(Made, record)
    state.made[made.candidate.model_key] = made


def _rung(state: State, record: Mapping[str, Any]) -> None:
    # In JSON the indices of candidates are text.
    timings = {int(index): fields for index, fields in record["timings"].items()}
    rung = _read(Rung, {**record, "timings": {}})
    state.rungs.append(
        attrs.evolve(rung, timings={index: _read(Timing, fields) for index, fields in timings.items()})
    )


def _sensitivity(state: State, record: Mapping[str, Any]) -> None:
    found = _read(_Sensitivity, record)
    state.sensitivity = tuple((decode(str, node), decode(float, db)) for node, db in found.layers)


def _evaluating(state: State, record: Mapping[str, Any]) -> None:
    trial = _read(_Evaluated, record).trial
    state.attempts[trial] = state.attempts.get(trial, 0) + 1


def _evaluated(state: State, record: Mapping[str, Any]) -> None:
    found = _read(_Evaluated, record)
    state.metrics[found.trial] = found.metric
    if found.reason:
        state.failures[found.trial] = found.reason


def _memory(state: State, record: Mapping[str, Any]) -> None:
    found = _read(_Memory, record)
    state.peaks[found.trial] = found.peak_bytes


def _layers(state: State, record: Mapping[str, Any]) -> None:
    found = _read(_Layers, record)
    state.layer_us[found.trial] = found.us


def _end(state: State, _: Mapping[str, Any]) -> None:
    state.ended = True


def _read(kind: type[T], record: Mapping[str, Any]) -> T:
    return decode(kind, record, skip_unknown=True)


_FOLD = {
    "start": _start,
    "prepared": _prepared,
    "made": _made,
    "rung": _rung,
    "sensitivity": _sensitivity,
    "evaluating": _evaluating,
    "evaluated": _evaluated,
    "memory": _memory,
    "layers": _layers,
    "end": _end,
}
