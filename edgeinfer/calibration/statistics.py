"""`Statistics`: what methods ask of tensors, gathered in few passes, and kept for who asks again.

A method declares its needs: observers by tensor of a model (`Declares`). `Statistics.announce` notes the
needs of several methods, and the first `gather` for that model sees to all of them in one pass. What was
gathered is known by the model's digest, the tensor and the observer's key, so that an attempt that differs in
nothing that matters takes what an earlier one has gathered. Whoever takes `calibration` takes a Statistics in
its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast, final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.calibration import as_calibration, observe
from edgeinfer.calibration.observers import Observer, Resumable
from edgeinfer.model.model import Model

__all__ = ["Declares", "Needs", "Statistics", "as_statistics"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"
Needs: TypeAlias = "Mapping[str, Sequence[Observer]]"
_Key: TypeAlias = tuple[str, str, str]  # a model's digest, a tensor of it, an observer's key


class Declares(Protocol):
    """A method that says what it needs to know of a model's tensors."""

    def declare(self, model: Model, /) -> Needs:
        """Return fresh observers by tensor of the main graph."""
        ...


class Statistics:
    """What is known of the tensors of models over one set of feeds.

    Args:
        feeds: Gives all feeds, as often as it is called.
        count: How many they are; None to count them when that is asked for.
        shared: Whether several methods will ask: what they can share is then gathered so that they can.
        progress: Show it; None in a terminal or notebook only.

    Attributes:
        passes: How often the feeds were gone through.
        notes: What looked wrong with the data in the last pass, in sentences.
    """

    def __init__(
        self,
        feeds: Callable[[], Iterable[Feed]],
        count: int | None = None,
        *,
        shared: bool = False,
        progress: bool | None = False,
    ) -> None:
        self._feeds = feeds
        self._count = count
        self._progress = progress
        self._known: dict[_Key, Observer] = {}
        self._announced: dict[str, dict[str, list[Observer]]] = {}
        self.shared = shared
        self.passes = 0
        self.notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Feed]:
        """Go through the feeds."""
        self.passes += 1
        return iter(self._feeds())

    @property
    def count(self) -> int:
        """How many feeds there are."""
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def subset(self, count: int) -> Statistics:
        """Return statistics of at most so many of the feeds, evenly spread; nothing is known of them yet."""
        step = max(1, self.count // count)

        def some() -> Iterator[Feed]:
            every = enumerate(self._feeds())
            return itertools.islice((feed for index, feed in every if index % step == 0), count)

        kept = min(count, -(-self.count // step))
        return Statistics(some, kept, shared=self.shared, progress=self._progress)

    def every_other(self) -> Statistics:
        """Return statistics of every other feed, from the same passes."""
        return _EveryOther(self)

    def announce(self, model: Model, needs: Needs) -> None:
        """Note what will be asked of a model, so that its first pass gathers it."""
        waiting = self._announced.setdefault(model.digest, {})
        for tensor, observers in needs.items():
            waiting.setdefault(tensor, []).extend(observers)

    def gather(self, model: Model, needs: Needs, *, keep: bool = True) -> dict[str, tuple[Observer, ...]]:
        """Return observers that have seen every feed, in the places of those given.

        Args:
            model: The model; it is run by the reference backend.
            needs: Fresh observers by tensor. Others of the same key may come back in their places.
            keep: Keep what is gathered for who asks again; what was announced is kept in any case.

        Raises:
            CalibrationError: See `observe`.
        """
        digest = model.digest
        missing = self._missing(digest, needs)
        here = dict(self._known)
        if missing:
            here |= missing
            announced = self._missing(digest, self._announced.pop(digest, {}))
            self._known |= announced
            here |= announced
            self._known |= missing if keep else {}
            watching: dict[str, list[Observer]] = {}
            for (_, tensor, _), observer in (missing | announced).items():
                watching.setdefault(tensor, []).append(observer)
            calibration = as_calibration(_Again(self._feeds), model.signature)
            self.passes += 1
            self.notes = observe(model, calibration, watching, progress=self._progress).notes
        return {
            tensor: tuple(here[_key(digest, tensor, observer)] for observer in observers)
            for tensor, observers in needs.items()
        }

    def _missing(self, digest: str, needs: Needs) -> dict[_Key, Observer]:
        """Return the observers that stand for something that is not known yet, one for each key."""
        found = {_key(digest, tensor, o): o for tensor, observers in needs.items() for o in observers}
        return {key: observer for key, observer in found.items() if key not in self._known}

    def forget(self, model: Model) -> None:
        """Free what is known of a model."""
        digest = model.digest
        self._known = {key: value for key, value in self._known.items() if key[0] != digest}
        self._announced.pop(digest, None)


@final
class _EveryOther(Statistics):
    """Statistics of every other feed, which those of all feeds gather."""

    def __init__(self, every: Statistics) -> None:
        super().__init__(lambda: itertools.islice(iter(every), 0, None, 2), shared=every.shared)
        self._every = every

    @property
    def count(self) -> int:
        return (self._every.count + 1) // 2

    def announce(self, model: Model, needs: Needs) -> None:
        self._every.announce(model, _halved(needs))

    def gather(self, model: Model, needs: Needs, *, keep: bool = True) -> dict[str, tuple[Observer, ...]]:
        found = self._every.gather(model, _halved(needs), keep=keep)
        self.notes = self._every.notes
        return {
            tensor: tuple(cast("_Halving", observer).observer for observer in observers)
            for tensor, observers in found.items()
        }


@final
class _Halving:
    """Shows an observer every other value, beginning with the first."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self._skip = False

    @property
    def key(self) -> str:
        own = self.observer
        return f"every other {own.key if isinstance(own, Resumable) else id(own)}"

    def update(self, array: np.ndarray) -> None:
        if not self._skip:
            self.observer.update(array)
        self._skip = not self._skip

    def state(self) -> dict[str, np.ndarray]:
        return {**cast("Resumable", self.observer).state(), "skip": np.array(self._skip)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self._skip = bool(state["skip"])
        cast("Resumable", self.observer).restore(state)


def _halved(needs: Needs) -> dict[str, list[Observer]]:
    return {tensor: [_Halving(observer) for observer in observers] for tensor, observers in needs.items()}


def as_statistics(source: Any, signature: Signature) -> Statistics:
    """Return statistics over whatever holds the data; see `as_calibration`."""
    if isinstance(source, Statistics):
        return source
    calibration = as_calibration(source, signature)
    return Statistics(lambda: calibration)


def _key(digest: str, tensor: str, observer: Observer) -> _Key:
    # An observer that cannot say what it is like stands for itself alone.
    return digest, tensor, observer.key if isinstance(observer, Resumable) else f"id {id(observer)}"


@final
class _Again:
    """Feeds as a source that starts over each time."""

    def __init__(self, feeds: Callable[[], Iterable[Feed]]) -> None:
        self._feeds = feeds

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._feeds())
