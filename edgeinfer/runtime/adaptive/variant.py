"""The variants of an `AdaptiveSession`: artifacts, and the sessions of them while they are loaded."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.errors import InputError, OptionsError
from edgeinfer.feeds.choose import choose_feeds
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__ = ["Variant", "common_signature", "idle_ms", "variants_of"]

_IDLE_RUNS = 15


@final
class Variant:
    """One variant.

    Args:
        name: For tables and events.
        make: Makes the session.
        owned: Whether the session may be closed, and made again.
    """

    def __init__(self, name: str, make: Callable[[], Session], *, owned: bool = True) -> None:
        self.name = name
        self.owned = owned
        self._make = make
        self._session: Session | None = None
        self._users = 0
        self._changed = threading.Condition(threading.RLock())

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._session is not None

    def load(self) -> Session:
        """Load it, unless it is loaded."""
        with self._changed:
            if self._session is None:
                self._session = self._make()
            return self._session

    @contextlib.contextmanager
    def use(self) -> Iterator[Session]:
        """Keep the session open while a request runs; loads it where it is not."""
        with self._changed:
            session = self.load()
            self._users += 1
        try:
            yield session
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def unload(self) -> None:
        """Close the session when no request runs in it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0)
            session, self._session = self._session, None
        if session is not None and self.owned:
            session.close()


def variants_of(variants: Mapping[str, Any] | Sequence[Any], options: object) -> list[Variant]:
    """Return the variants, none of them loaded.

    Args:
        variants: Artifacts, directories or open sessions, the best first, by name or in order.
        options: Load options of the backend.

    Raises:
        OptionsError: There is none.
    """
    if isinstance(variants, Mapping):
        found = [(str(name), source) for name, source in variants.items()]
    elif isinstance(variants, Iterable) and not isinstance(variants, (str, bytes)):
        found = [(_name(index, source), source) for index, source in enumerate(variants)]
    else:
        found = []
    if not found:
        raise OptionsError(
            "There is no variant.", where="variants", expected="artifacts, best first", found=repr(variants)
        )
    return [_variant(name, source, options) for name, source in found]


def _name(index: int, source: Any) -> str:
    return Path(source).name if isinstance(source, (str, os.PathLike)) else f"variant {index + 1}"


def _variant(name: str, source: Any, options: object) -> Variant:
    if isinstance(source, Session):
        return Variant(name, lambda: source, owned=False)
    return Variant(name, lambda: load(source, options=options))


def common_signature(variants: Sequence[Variant], sessions: Sequence[Session]) -> Signature:
    """Return the signature of all variants.

    Raises:
        InputError: They have not the same inputs and outputs.
    """
    first = sessions[0].signature
    for variant, session in zip(variants[1:], sessions[1:], strict=True):
        if _specs(session.signature) != _specs(first):
            raise InputError(
                "The variants differ in their inputs or outputs.",
                where=f"variant {variant.name!r}",
                expected=first.describe(),
                found=session.signature.describe(),
            )
    return first


def _specs(signature: Signature) -> list[tuple[str, np.dtype[Any], int | None]]:
    """Return names, dtypes and ranks; sizes may be fixed in one variant and open in another."""
    return [
        (spec.name, spec.dtype, None if spec.shape is None else len(spec.shape))
        for spec in (*signature.inputs, *signature.outputs)
    ]


def idle_ms(sessions: Sequence[Session], feeds: Any, shapes: Any) -> list[float]:
    """Return the shortest latency of each session in ms, run in turns.

    Args:
        sessions: The sessions.
        feeds: As for `benchmark`.
        shapes: As for `benchmark`.
    """
    chosen = [choose_feeds(feeds, session.signature, shapes=shapes).feeds[0] for session in sessions]
    least = [float("inf")] * len(sessions)
    for _ in range(_IDLE_RUNS):
        for index, (session, feed) in enumerate(zip(sessions, chosen, strict=True)):
            started = perf_counter()
            session.infer(feed)
            least[index] = min(least[index], 1e3 * (perf_counter() - started))
    return least
