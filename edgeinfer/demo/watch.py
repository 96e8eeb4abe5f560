"""Takes note of what each agent does in a rollout, for a picture."""

from __future__ import annotations

import itertools
import time
from typing import final

from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.timeline import Span, timeline

__all__ = ["Watch"]

_KEEPS, _FETCHES, _TRIES, _RUNS, _REFUSED = 6, 5, 0, 2, 4  # colours
_LEGEND = (
    (_KEEPS, "runs what it ran"),
    (_FETCHES, "fetches it"),
    (_TRIES, "tries it"),
    (_RUNS, "runs it"),
    (_REFUSED, "refused it"),
)
_FETCHING = frozenset({Phase.ACCEPTED, Phase.PRECHECK, Phase.DOWNLOADING, Phase.VERIFIED})
_REFUSING = frozenset({Phase.REJECTED, Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED, Phase.DEGRADED})


@final
class Watch:
    """What agents did with one release, from now on.

    Args:
        release: The release's digest.
    """

    def __init__(self, release: str) -> None:
        self._release = release
        self._start = time.monotonic()
        self._notes: dict[str, list[tuple[float, Phase]]] = {}

    def step(self, agent: Agent) -> None:
        """Let an agent do a step, and note in which phase it was and is."""
        notes = self._notes.setdefault(agent.device.identity.device, [(0.0, self._phase(agent))])
        agent.step()
        notes.append((time.monotonic() - self._start, self._phase(agent)))

    def picture(self, title: str) -> str:
        """Return a row for each device."""
        rows = {name: _spans(self._notes[name]) for name in sorted(self._notes)}
        return timeline(rows, title=title, x="seconds", legend=_LEGEND)

    def _phase(self, agent: Agent) -> Phase:
        """Return how far an agent is with the release; IDLE where it has not to do with it."""
        update = agent.device.state.update
        return update.phase if update is not None and self._release in update.releases else Phase.IDLE


def _spans(notes: list[tuple[float, Phase]]) -> list[Span]:
    """Put equal neighbours together: from a note to the next one it is in the phase of the first."""
    spans: list[Span] = []
    for (start, phase), (end, _) in itertools.pairwise(notes):
        span = Span(start=start, end=end, kind=_kind(phase), label=phase.value)
        if spans and spans[-1].kind == span.kind:
            span = Span(start=spans.pop().start, end=end, kind=span.kind, label=phase.value)
        spans.append(span)
    return spans


def _kind(phase: Phase) -> int:
    if phase in (Phase.IDLE, Phase.SUPERSEDED):
        return _KEEPS
    if phase is Phase.COMMITTED:
        return _RUNS
    if phase in _REFUSING:
        return _REFUSED
    return _FETCHES if phase in _FETCHING else _TRIES
