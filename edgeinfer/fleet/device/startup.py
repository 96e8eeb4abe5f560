"""What the agent does before its first step: reads the journal or rebuilds it, and looks at what runs."""

from __future__ import annotations

import contextlib
import logging

from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.floors import Floors
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.journal import Journal, State
from edgeinfer.fleet.device.recovery import after_restart, rebuilt
from edgeinfer.fleet.errors import GenerationError, JournalError

__all__ = ["begin", "check_running", "load_state"]

_LOG = logging.getLogger("edgeinfer.agent")


def load_state(journal: Journal, generations: Generations, now: int) -> tuple[State, bool]:
    """Return the journal, and whether it was lost and had to be rebuilt from the pointer.

    Raises:
        OSError: The disk does not give it.
    """
    with contextlib.suppress(JournalError):
        state = journal.load()
        if state is not None:
            return state, False
        if not generations.numbers() and not generations.current():
            return State(), False  # a new device
    number = generations.current()
    try:
        current = generations.read(number) if number else None
    except GenerationError:
        current = None
    last = max((*generations.numbers(), number))
    committed = bool(number) and generations.committed(number)
    return rebuilt(current, committed=committed, last_number=last, lost=0, now=now), True


def begin(device: Device, *, lost: bool) -> None:
    """Note this start durably, and what it means for an update that was under way.

    Raises:
        OSError: Of the disk.
    """
    before = device.state.update
    state = after_restart(device.state, device.probe.boot_id(), max_restarts=device.options.max_restarts)
    after = state.update
    floors = state.floors
    device.trust.raise_floors(Floors(versions=floors.metadata, time=floors.time))
    if after is not None and before is not None and after.phase is not before.phase:
        blame = after.releases if after.code == "staging_crash" else ()
        device.enter(after, after.phase, after.code, after.detail, blame=blame, state=state)
    elif after is not None:
        device.state = state
        device.report_again(after)  # the last report may be what a power loss took
    else:
        device.save(state)
    if lost:
        device.note("journal_lost", "the journal was lost; it was rebuilt from what runs")


def check_running(device: Device) -> None:
    """Go back where what runs is damaged, or the pointer is lost, to the newest that is not damaged.

    Raises:
        OSError: Of the disk.
    """
    number = device.generations.current()
    problem = "the pointer was lost"
    if number:
        try:
            device.generations.verify(number)
            return
        except GenerationError as error:
            problem = str(error)
    candidates = [n for n in device.generations.numbers() if n != number and device.generations.committed(n)]
    for candidate in sorted(candidates, reverse=True):
        with contextlib.suppress(GenerationError):
            device.generations.verify(candidate)
            device.generations.activate(candidate)
            device.note("repointed", f"{problem}; generation {candidate} serves")
            return
    if number:
        device.note("damaged", problem)
