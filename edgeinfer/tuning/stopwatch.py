"""Timing one candidate in a child process, a burst at a time, so that several can take turns."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.devices.profile import Target
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.timing import timing_clock
from edgeinfer.model.model import Model
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session
from edgeinfer.tuning.inputs import in_batches

__all__ = ["Stopwatch"]

_FEEDS = 4
_WARM_UP = 5


@final
@attrs.frozen(kw_only=True)
class Stopwatch:
    """A loaded candidate, with what to run.

    Attributes:
        session: The session.
        feeds: Gone through in turn.
        disk_bytes: The size of the artifact.
        warm_ms: The fastest of the first inferences.
        one_thread: Whether it computes on one thread of a CPU, so that its processor time is its latency on
            a machine that does nothing else.
    """

    session: Session
    feeds: Iterator[dict[str, np.ndarray]]
    disk_bytes: int
    warm_ms: float
    one_thread: bool

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, task: Mapping[str, Any]) -> Iterator[Stopwatch]:
        """Compile and load a candidate, and warm it up.

        Args:
            folder: Where models and `feeds` are.
            task: `model` (a file name), `target`, `options`, `threads` (what of the options bounds threads),
                `batch` (rows of an inference; None: those of the feeds).
        """
        model = Model.load(folder / task["model"])
        options = dict(task["options"])
        artifact = compile_model(model, Target.parse(task["target"]), options=options or None, trial=False)
        feeds = list(Feeds.of(folder / "feeds", model.signature).take(_FEEDS))
        feeds = in_batches(feeds, task.get("batch"))
        with load(artifact) as session:
            threads = {name: options[name] for name in task["threads"] if name in options}
            clock = timing_clock((session,), threads or None)
            warm = []
            for feed in itertools.islice(itertools.cycle(feeds), _WARM_UP):
                started = time.perf_counter()
                session.infer(feed)
                warm.append(1e3 * (time.perf_counter() - started))
            yield cls(
                session=session,
                feeds=itertools.cycle(feeds),
                disk_bytes=artifact.disk_bytes,
                warm_ms=min(warm),
                one_thread=clock is time.process_time,
            )

    def facts(self) -> dict[str, Any]:
        """Return what is known before anything is timed."""
        return {"disk_bytes": self.disk_bytes, "warm_ms": self.warm_ms, "one_thread": self.one_thread}

    def time(self, runs: int) -> dict[str, Any]:
        """Return the time on the wall and the processor time of so many inferences, in ms."""
        wall, processor = [], []
        infer = self.session.infer
        for feed in itertools.islice(self.feeds, runs):
            started, used = time.perf_counter_ns(), time.process_time_ns()
            infer(feed)
            processor.append((time.process_time_ns() - used) / 1e6)
            wall.append((time.perf_counter_ns() - started) / 1e6)
        return {"wall_ms": wall, "cpu_ms": processor}
