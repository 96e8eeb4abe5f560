"""Requests on disk: the live inputs that the agent asks for, and a ring of captured ones (off by default)."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

import attrs
import numpy as np

from edgeinfer.budget import parse_bytes
from edgeinfer.fleet.device.exchange import ShadowOrder
from edgeinfer.fleet.device.live_inputs import write_sample

__all__ = ["Capture", "Observed", "SampleWriter"]

_LOG = logging.getLogger("edgeinfer.application")
_QUEUE = 16  # requests that wait for the disk; further ones are passed over, so that none waits


def _bytes(value: object) -> int:
    return parse_bytes(value, name="max_bytes")


@final
@attrs.frozen(kw_only=True)
class Observed:
    """What `observe` was told of an answer.

    Attributes:
        model: The model's name.
        confidence: Of the model in its answer; 1.0 where nothing was told.
        label: What it answered, or what a person said; empty where nothing was told.
    """

    model: str
    confidence: float = 1.0
    label: str = ""


@final
@attrs.frozen(kw_only=True)
class Capture:
    """Keep some requests, inputs and answers, in `capture/MODEL/` of the device's folder.

    Attributes:
        max_bytes: How much of each model is kept, as bytes or text such as `50 MB`; the oldest go first.
        every: Keep one of so many requests; of those that `when` chooses, if it is given.
        when: Chooses by what `observe` is told of an answer, such as `lambda seen: seen.confidence < 0.6`:
            then only requests that are observed are kept. None keeps any.
    """

    max_bytes: int = attrs.field(converter=_bytes)
    every: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    when: Callable[[Observed], bool] | None = None


@final
class SampleWriter:
    """Writes requests in a thread of its own, so that no answer waits for a disk."""

    def __init__(self, root: Path, capture: Capture | None) -> None:
        self._root = root
        self._capture = capture
        self._order: ShadowOrder | None = None
        self._generation = 0
        self._counter = itertools.count(1)
        self._names = itertools.count()
        self._queue: queue.Queue[tuple[Path, Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None]
        self._queue = queue.Queue(maxsize=_QUEUE)
        self._thread: threading.Thread | None = None
        self._complained = False

    def order(self, order: ShadowOrder | None, generation: int) -> None:
        """Take note of what the agent asks for, and of the generation that is served."""
        self._order, self._generation = order, generation

    def wants(self, model: str, generation: int) -> bool:
        """Whether the next request of a model is to be offered. Costs next to nothing."""
        if self._capture is not None and self._capture.when is None:
            return True
        order = self._order
        return order is not None and order.model == model and order.generation == generation

    @property
    def waits_for_observations(self) -> bool:
        """Whether what is observed of a request decides if it is kept."""
        return self._capture is not None and self._capture.when is not None

    def offer(self, model: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """Write a request soon, or pass it over."""
        folders = []
        order = self._order
        if order is not None and order.model == model and order.generation == self._generation:
            folders.append(self._root / "run" / "shadow" / model)
        if self._capture is not None and self._capture.when is None:
            folders += self._captured(self._capture, model)
        self._enqueue(folders, inputs, outputs)

    def observed(
        self, seen: Observed, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> None:
        """Write a request soon if what was observed of it says so."""
        capture = self._capture
        if capture is not None and capture.when is not None and capture.when(seen):
            self._enqueue(self._captured(capture, seen.model), inputs, outputs)

    def _captured(self, capture: Capture, model: str) -> list[Path]:
        return [self._root / "capture" / model] if next(self._counter) % capture.every == 0 else []

    def _enqueue(
        self, folders: list[Path], inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> None:
        # The caller may change its arrays as soon as it has its answer.
        copy = {name: np.array(array) for name, array in inputs.items()} if folders else {}
        for folder in folders:
            try:
                self._queue.put_nowait((folder, copy, outputs))
            except queue.Full:
                self._complain("the disk is slower than the requests")
                continue
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="edgeinfer-samples", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            folder, inputs, outputs = item
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if folder.parent.name == "shadow" and self._is_full(folder):
                    continue
                name = f"{time.time_ns():020d}-{next(self._names):06d}.npz"
                write_sample(folder / name, inputs, outputs)
                if folder.parent.name == "capture" and self._capture is not None:
                    _shrink(folder, self._capture.max_bytes)
            except (OSError, ValueError) as error:
                self._complain(str(error))

    def _complain(self, why: str) -> None:
        """Log the first time that a request is passed over; a full disk would fill the log, too."""
        if not self._complained:
            self._complained = True
            _LOG.warning("not every request that was to be captured is kept: %s", why)

    def _is_full(self, folder: Path) -> bool:
        order = self._order
        return order is None or sum(1 for _ in folder.glob("*.npz")) >= order.requests


def _shrink(folder: Path, max_bytes: int) -> None:
    """Remove the oldest until the rest fits."""
    files = []
    for path in sorted(folder.glob("*.npz")):
        with contextlib.suppress(FileNotFoundError):
            files.append((path, path.stat().st_size))
    total = sum(size for _, size in files)
    for path, size in files:
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
