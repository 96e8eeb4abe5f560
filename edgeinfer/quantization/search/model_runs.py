"""Running versions of a model on feeds: in the reference backend or on the target, in open or closed loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TypeAlias, final

import attrs
import numpy as np

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.graph.build import compile_model
from edgeinfer.graph.taps import expose, reference_session
from edgeinfer.model.model import Model
from edgeinfer.runtime.machine import usable_cores
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__ = ["Feed", "Loop", "OpenModel", "run_outputs", "target_session"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"


@final
@attrs.frozen(kw_only=True)
class Loop:
    """How a model's outputs come back as inputs of its next call.

    Attributes:
        back: The output that each such input takes its next value from.
        starts: The numbers of the feeds that begin a sequence: their own values are used there.
    """

    back: Mapping[str, str]
    starts: frozenset[int] = frozenset({0})


def run_outputs(
    model: Model,
    feeds: Iterable[Feed],
    target: Target | str | QDQDialect | None = None,
    *,
    tensors: Sequence[str] | None = None,
    loop: Loop | None = None,
) -> list[list[np.ndarray]]:
    """Run a model on feeds; return what it gives, feed by feed.

    Each run is on one thread, so that the figures do not depend on how many cores there are.

    Args:
        model: The model.
        feeds: Its inputs.
        target: Where to run it as it would be deployed; None for the reference backend, which computes what
            the graph says.
        tensors: The tensors to return; None for the outputs, in the signature's order.
        loop: Feed outputs back into inputs.

    Raises:
        BackendUnavailableError: The target's backend is not here.
        CompileError: It refuses the model.
    """
    with OpenModel(model, target, tensors=tensors, loop=loop) as opened:
        return opened.run(feeds)


@final
class OpenModel:
    """A model that is loaded to be run on several sets of feeds; a context manager. See `run_outputs`."""

    def __init__(
        self,
        model: Model,
        target: Target | str | QDQDialect | None = None,
        *,
        tensors: Sequence[str] | None = None,
        loop: Loop | None = None,
    ) -> None:
        outputs = [spec.name for spec in model.signature.outputs]
        self._wanted = list(tensors) if tensors is not None else outputs
        names = list(dict.fromkeys([*self._wanted, *(loop.back.values() if loop is not None else ())]))
        shown = model if set(names) <= set(outputs) else expose(model, names)
        parsed = Target.parse(target) if target is not None and not isinstance(target, QDQDialect) else None
        self._loop = loop
        self._session = (
            reference_session(shown, threads=1) if parsed is None else target_session(shown, parsed)
        )

    def run(self, feeds: Iterable[Feed]) -> list[list[np.ndarray]]:
        """Return what the model gives, feed by feed."""
        if self._loop is not None:
            return self._closed(feeds, self._loop)
        found = self._session.stream((dict(feed) for feed in feeds), in_flight=usable_cores())
        return [[given[name] for name in self._wanted] for given in found]

    def _closed(self, feeds: Iterable[Feed], loop: Loop) -> list[list[np.ndarray]]:
        found: list[list[np.ndarray]] = []
        state: dict[str, np.ndarray] = {}
        for index, feed in enumerate(feeds):
            given = dict(feed) if index in loop.starts else {**feed, **state}
            outputs = self._session.infer(given)
            state = {name: outputs[source] for name, source in loop.back.items()}
            found.append([outputs[name] for name in self._wanted])
        return found

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()


def target_session(model: Model, target: Target, *, threads: int = 1) -> Session:
    """Load a model on a target as it would be deployed.

    Args:
        model: The model.
        target: The target.
        threads: Threads within an operator, for backends with such an option.

    Raises:
        BackendUnavailableError: The target's backend is not here.
        CompileError: It refuses the model.
    """
    options = get_backend(target.backend).capabilities().threads(threads)
    device = target.device or None
    return load(compile_model(model, target.backend, device=device, options=options, trial=False))
