"""Counts of what a model served, for several threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import final

from edgeinfer.fleet.device.exchange import ModelStatus
from edgeinfer.fleet.device.histogram import Histogram

__all__ = ["ServingStatistics"]

_MAX_LABELS = 1_000
_OTHER = "(other)"


@final
class ServingStatistics:
    """Counts of one model in one generation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._errors = self._by_previous = self._hangs = self._misses = 0
        self._running: dict[int, float] = {}  # since when, by thread; each writes its own
        self._latency, self._confidence = Histogram(), Histogram()
        self._labels: Counter[str] = Counter()

    def began(self) -> None:
        """Note that this thread runs an inference now."""
        self._running[threading.get_ident()] = time.monotonic()

    def ended(self) -> None:
        """Note that it has ended, however."""
        self._running.pop(threading.get_ident(), None)

    def served(self, latency_ms: float, *, late: bool) -> None:
        """Count an answer."""
        with self._lock:
            self._requests += 1
            self._misses += late
            self._latency.add(latency_ms)

    def failed(self, *, answered_by_previous: bool, hung: bool) -> None:
        """Count a failure of the runtime."""
        with self._lock:
            self._errors += 1
            self._hangs += hung
            self._by_previous += answered_by_previous

    def observed(self, confidence: float | None, label: str | None) -> None:
        """Count what the application observed."""
        with self._lock:
            if confidence is not None:
                self._confidence.add(confidence)
            if label is not None:
                known = label in self._labels or len(self._labels) < _MAX_LABELS
                self._labels[label if known else _OTHER] += 1

    def status(self, accepts: str, release: str) -> ModelStatus:
        """Return the counts so far."""
        with self._lock:
            latency, confidence = Histogram(), Histogram()
            latency.merge(self._latency)
            confidence.merge(self._confidence)
            return ModelStatus(
                accepts=accepts,
                release=release,
                requests=self._requests,
                errors=self._errors,
                answered_by_previous=self._by_previous,
                hangs=self._hangs,
                waits_since=min(list(self._running.values()), default=0.0),
                deadline_misses=self._misses,
                latency_ms=latency,
                confidence=confidence,
                labels=dict(self._labels),
            )
