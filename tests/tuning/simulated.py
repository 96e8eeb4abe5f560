"""A tuning run without a model: figures come from rules, so that only the decisions are real."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeinfer.budget import Budget
from edgeinfer.tuning.actions import (
    Action,
    Evaluate,
    Finish,
    Make,
    MeasureMemory,
    MeasureSensitivity,
    Prepare,
    Problem,
    Time,
)
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.planner import next_action
from edgeinfer.tuning.space import Space
from edgeinfer.tuning.state import State

LAYERS = [[f"conv{i}", "Conv", 1_000_000 * (i + 1)] for i in range(10)]


def plain(action: Action) -> str:
    """An action as text, to compare."""
    return repr(action)


def latency_ms(candidate: Candidate) -> float:
    times = {"float32": 10.0, "int8": 5.0, "float16": 7.0, "dynamic": 8.0, "weights8": 10.5}
    time = times[candidate.precision]
    time += 0.3 * len(candidate.keep_float)
    time *= 0.4 + 0.6 * (candidate.batch or 1)
    time *= 0.45 if candidate.narrow else 1.0
    return time * (0.2 + 0.8 * candidate.keep) * candidate.options.get("slow", 1.0)


def sqnr_db(candidate: Candidate) -> float:
    noise = {"float32": 1e-9, "int8": 0.004}.get(candidate.precision, 0.01)
    noise += 1e-4 if candidate.narrow else 0.0
    noise += 0.2 * (1 - candidate.keep) ** 1.5
    return float(-10 * np.log10(noise) + 0.3 * len(candidate.keep_float))


def noise(candidate: Candidate, run: int) -> float:
    """A little, the same for the same run and candidate."""
    digest = hashlib.sha256(f"{run} {candidate.to_dict()}".encode()).digest()
    return 1.0 + (digest[0] / 255 - 0.5) * 0.04


class World:
    """Does actions; `run` is what differs between two runs of the same search: the timings."""

    def __init__(self, run: int = 0, bad: Mapping[str, str] | None = None, pressure: float = 0.0) -> None:
        self.run = run
        self.bad = bad or {}
        self.pressure = pressure

    def do(self, action: Action) -> dict[str, Any]:
        if isinstance(action, Prepare):
            return {"kind": "prepared", "layers": LAYERS, "prunes": ["channels"], "seconds": 5.0}
        if isinstance(action, MeasureSensitivity):
            layers = [[name, 20.0 + index] for index, (name, _, _) in enumerate(LAYERS)]
            return {"kind": "sensitivity", "layers": layers, "seconds": 10.0}
        if isinstance(action, Make):
            return {
                "kind": "made",
                "trial": action.trial,
                "candidate": action.candidate.to_dict(),
                "seconds": 10.0,
                **self._made(action.candidate),
            }
        if isinstance(action, Time):
            timings = {str(index): self._timing(candidate) for index, candidate in action.trials}
            return {
                "kind": "rung",
                "name": action.name,
                "timings": timings,
                "pressure": self.pressure,
                "seconds": 5.0,
            }
        if isinstance(action, Evaluate):
            metric = 0.9 - 10 ** (-sqnr_db(action.candidate) / 10)
            return {"kind": "evaluated", "trial": action.trial, "metric": metric, "seconds": 8.0}
        if isinstance(action, MeasureMemory):
            return {"kind": "memory", "trial": action.trial, "peak_bytes": 50_000_000, "seconds": 2.0}
        assert isinstance(action, Finish)
        return {"kind": "end"}

    def _made(self, candidate: Candidate) -> dict[str, Any]:
        outcome = self.bad.get(candidate.precision, "ok")
        if outcome != "ok":
            return {"outcome": outcome, "reason": "as told"}
        db = sqnr_db(candidate)
        close = {"sqnr_db": db, "rank_db": db}
        return {"outcome": "ok", "digest": candidate.model_key, "macs": 55_000_000, **close}

    def _timing(self, candidate: Candidate) -> dict[str, Any]:
        ms = latency_ms(candidate) * noise(candidate, self.run)
        return {
            "outcome": "ok",
            "n": 50,
            "wall_p50_ms": ms * (3 if self.pressure else 1),
            "wall_p99_ms": 1.2 * ms,
            "cpu_p50_ms": ms,
            "cpu_p99_ms": 1.1 * ms,
            "disk_bytes": 1_000_000,
            "latencies_ms": [ms] * 20,
        }


def start(problem: Problem) -> dict[str, Any]:
    return {"kind": "start", "seed": problem.seed}


def run(problem: Problem, world: World, records: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Go on from some records until the end."""
    records = list(records or [start(problem)])
    while not State.of(records).ended:
        action = next_action(State.of(records), problem)
        records.append(json.loads(json.dumps(world.do(action))))
        assert len(records) < 300, "the search does not end"
    return records


def problem_of_kills() -> Problem:
    """What `killed_run` searches."""
    space = Space(precisions=("float32", "int8"))
    return Problem(budget=Budget(latency_p50_ms=4.0, max_drop=0.05), space=space, evaluates=True)
