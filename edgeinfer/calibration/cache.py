"""`CalibrationCache`: what observers have seen so far, on disk, so that a pass can be taken up again.

An entry is a folder with `states.npz` (arrays, never pickles) and `meta.json`, which has the SHA-256 of both.
It belongs to one model, one set of observers, and the feeds that it has seen: the running SHA-256 of those is
compared before it is used. Another entry, or a damaged one, is ignored with a note.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
import numpy as np

from edgeinfer.atomic import FolderReader, write_folder
from edgeinfer.calibration.observers import Observer, Resumable
from edgeinfer.errors import CalibrationError
from edgeinfer.feeds.feeds import update_digest
from edgeinfer.model.model import Model
from edgeinfer.npz import member, write_npz
from edgeinfer.plain_json import parse_json

__all__ = ["CacheEntry", "CalibrationCache", "Checkpoint"]

_FORMAT = 2
_STATES, _META = "states.npz", "meta.json"


@final
@attrs.frozen(kw_only=True)
class CacheEntry:
    """One stored state.

    Attributes:
        samples: How many feeds the observers had seen.
        feeds_sha256: The SHA-256 of those feeds.
        states: The state of each observer: `{"tensor/0": {"counts": array, ...}, ...}`.
    """

    samples: int
    feeds_sha256: str
    states: Mapping[str, Mapping[str, np.ndarray]]


@final
class CalibrationCache:
    """A folder of entries.

    Args:
        folder: Where entries are; made when the first is stored.
        every: Store after so many feeds, and at the end.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 64) -> None:
        if every < 1:
            raise CalibrationError("The cache must be stored every 1 feed or more.", found=every)
        self.folder = Path(folder)
        self.every = every

    def key(self, model: Model, watching: Mapping[str, Sequence[Observer]]) -> str:
        """Return the name of the entry for a model and its observers.

        Raises:
            CalibrationError: An observer has no state that can be stored.
        """
        keys = [[label, observer.key] for label, observer in _resumable(watching).items()]
        text = json.dumps([_FORMAT, model.digest, keys])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def store(
        self, key: str, samples: int, feeds_sha256: str, watching: Mapping[str, Sequence[Observer]]
    ) -> None:
        """Write the observers' states, all or nothing.

        Raises:
            CalibrationError: The folder cannot be written.
        """
        buffer = io.BytesIO()
        labels = []
        arrays: dict[str, np.ndarray] = {}
        for number, (label, observer) in enumerate(_resumable(watching).items()):
            labels.append(label)
            arrays |= {f"{number}.{name}": array for name, array in observer.state().items()}
        write_npz(buffer, arrays)
        data = buffer.getvalue()
        meta = {
            "format": _FORMAT,
            "key": key,
            "samples": samples,
            "feeds_sha256": feeds_sha256,
            "labels": labels,
            "states_sha256": hashlib.sha256(data).hexdigest(),
        }
        meta["meta_sha256"] = _digest(meta)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_folder(self.folder / key, {_STATES: data, _META: json.dumps(meta, indent=1).encode()})
        except OSError as error:
            raise CalibrationError(
                f"The calibration cache cannot be written: {error.strerror or error}.",
                where=str(self.folder),
                expected="a folder that this user may write, with room",
                found=f"{len(data) / 1e6:.1f} MB to write",
                hint="Give another folder to CalibrationCache.",
            ) from error

    def load(
        self, key: str, watching: Mapping[str, Sequence[Observer]]
    ) -> tuple[CacheEntry | None, str | None]:
        """Return the entry, or None and, if there is one that cannot be used, the reason."""
        folder = self.folder / key
        try:
            with FolderReader(folder) as reader:
                with reader.open(_META) as file:
                    meta = parse_json(file.read())
                with reader.open(_STATES) as file:
                    data = file.read()
            return _entry(key, meta, data, list(_resumable(watching))), None
        except FileNotFoundError as error:
            missing = None if not folder.exists() else f"{error.filename} is missing"
            return None, missing and f"the calibration cache {folder} is damaged and was not used: {missing}"
        except Exception as error:  # whatever a damaged file makes of the parsers
            return None, f"the calibration cache {folder} is damaged and was not used: {error}"


@final
class Checkpoint:
    """Where one calibration pass stands, in step with its cache."""

    def __init__(
        self,
        cache: CalibrationCache,
        model: Model,
        watching: Mapping[str, Sequence[Observer]],
        feeds: Iterable[Mapping[str, np.ndarray]],
    ) -> None:
        self._cache = cache
        self._watching = watching
        self._feeds = feeds
        self._key = cache.key(model, watching)
        self._digest = hashlib.sha256()
        self._samples = self._stored = 0
        self.notes: list[str] = []

    def resume(self) -> int:
        """Give the observers what is stored for these feeds, and return how many of them that covers."""
        entry, reason = self._cache.load(self._key, self._watching)
        if reason is not None:
            self.notes.append(reason)
        if entry is None:
            return 0
        digest = hashlib.sha256()
        seen = 0
        for feed in itertools.islice(self._feeds, entry.samples):
            update_digest(digest, feed)
            seen += 1
        if seen < entry.samples or digest.hexdigest() != entry.feeds_sha256:
            self.notes.append(f"the calibration cache {self._cache.folder} is of other data and was not used")
            return 0
        for label, observer in _resumable(self._watching).items():
            self._restore(observer, label, entry.states[label])
        self._digest, self._samples, self._stored = digest, seen, seen
        self.notes.append(f"{seen} samples were taken from the calibration cache")
        return seen

    def _restore(self, observer: Resumable, label: str, state: Mapping[str, np.ndarray]) -> None:
        try:
            observer.restore(dict(state))
        except Exception as error:  # its hash is right, so another version of the observer wrote it
            raise CalibrationError(
                f"An observer refuses its state in the calibration cache: {type(error).__name__}: {error}",
                where=f"{self._cache.folder / self._key}, observer {label!r}",
                expected=f"a state of {type(observer).__name__}",
                found=", ".join(sorted(state)) or "nothing",
                hint="Remove that folder.",
            ) from error

    def saw(self, feed: Mapping[str, np.ndarray]) -> None:
        """Count a feed that the observers have seen; store now and then."""
        update_digest(self._digest, feed)
        self._samples += 1
        if self._samples - self._stored >= self._cache.every:
            self._store()

    def finish(self) -> None:
        """Store what is not stored yet."""
        if self._samples > self._stored:
            self._store()

    def _store(self) -> None:
        self._cache.store(self._key, self._samples, self._digest.hexdigest(), self._watching)
        self._stored = self._samples


def _digest(meta: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _entry(key: str, meta: dict[str, object], data: bytes, labels: list[str]) -> CacheEntry:
    if meta.pop("meta_sha256") != _digest(meta):
        raise ValueError(f"{_META} does not have the hash that was stored")
    if hashlib.sha256(data).hexdigest() != meta["states_sha256"]:
        raise ValueError(f"{_STATES} does not have the hash that was stored")
    samples = meta["samples"]
    if (meta["format"], meta["key"], meta["labels"]) != (_FORMAT, key, labels):
        raise ValueError("it is of another format, for another model or for other observers")
    if type(samples) is not int or not 0 <= samples <= sys.maxsize:
        raise ValueError(f"{samples!r} is no number of samples")
    states: dict[str, dict[str, np.ndarray]] = {label: {} for label in labels}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for name in arrays.files:
            number, _, field = name.partition(".")
            states[labels[int(number)]][field] = member(arrays, name)
    return CacheEntry(samples=samples, feeds_sha256=str(meta["feeds_sha256"]), states=states)


def _resumable(watching: Mapping[str, Sequence[Observer]]) -> dict[str, Resumable]:
    found: dict[str, Resumable] = {}
    for name in sorted(watching):
        for number, observer in enumerate(watching[name]):
            if not isinstance(observer, Resumable):
                raise CalibrationError(
                    "An observer's state cannot be stored, so the pass cannot be cached.",
                    where=f"tensor {name!r}",
                    expected="an observer with key, state() and restore()",
                    found=type(observer).__name__,
                )
            found[f"{name}/{number}"] = observer
    return found
