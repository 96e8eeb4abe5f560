"""What an agent does first after it was started: with a journal, or with none. Pure decisions.

ACCEPTED, PRECHECK                 again
DOWNLOADING                        again; the downloader hashes what is there and resumes
VERIFIED, STAGED, SHADOW, READY    continue; the lease is checked again
STAGING                            the attempt was counted before the load: a second crash is FAILED
ACTIVATING                         read the pointer: the old generation → again, the new one → SOAKING
SOAKING                            continue; unclean reboots count, above the device's own baseline
ROLLING_BACK                       the rename again
the journal lost or damaged        rebuilt from the pointer
"""

from __future__ import annotations

import attrs

from edgeinfer.fleet.device.generations import Generation
from edgeinfer.fleet.device.journal import Change, Floors, State, Update
from edgeinfer.fleet.device.phases import Phase

__all__ = ["after_restart", "rebuilt"]

_MAX_ATTEMPTS = 2


def after_restart(state: State, boot_id: str, *, max_restarts: int) -> State:
    """Return the journal with what this start of the agent means.

    Args:
        state: As the last agent left it.
        boot_id: Of this boot.
        max_restarts: How often the agent may crash in one update.
    """
    boots, update = state.boots, state.update
    rebooted = boots.boot_id not in ("", boot_id)
    unclean = rebooted and not boots.clean
    # Within one boot, an agent that was stopped in order says so; else it crashed or was killed.
    crashed = not rebooted and not boots.clean
    soaking = update is not None and update.phase is Phase.SOAKING
    boots = attrs.evolve(
        boots, boot_id=boot_id, clean=False, unclean=boots.unclean + (unclean and not soaking)
    )
    if update is not None and not update.phase.final:
        update = _continued(
            update, clean=state.boots.clean, unclean=unclean, crashed=crashed, max_restarts=max_restarts
        )
    return attrs.evolve(state, boots=boots, update=update)


def _continued(update: Update, *, clean: bool, unclean: bool, crashed: bool, max_restarts: int) -> Update:
    if update.phase is Phase.STAGING and not clean:
        if update.attempts >= _MAX_ATTEMPTS:
            return attrs.evolve(
                update,
                phase=Phase.FAILED,
                code="staging_crash",
                detail=f"the device or its agent went down {update.attempts} times while the model loaded",
            )
        return attrs.evolve(update, attempts=update.attempts + 1)
    if update.phase is Phase.SOAKING:
        soak = attrs.evolve(update.soak, unclean=update.soak.unclean + unclean)
        return attrs.evolve(update, soak=soak)
    if not crashed or update.phase.activated:
        return update
    restarts = update.restarts + 1
    if restarts > max_restarts:
        what = f"the agent crashed {restarts} times in {update.phase.value}"
        return attrs.evolve(update, phase=Phase.FAILED, restarts=restarts, code="crash_loop", detail=what)
    return attrs.evolve(update, restarts=restarts)


def rebuilt(current: Generation | None, *, committed: bool, last_number: int, lost: int, now: int) -> State:
    """Return a journal for a device that lost its own.

    What runs is known from the pointer. If its soak had not been passed, it begins again, so that the device
    can still go back. The floors of assignments come from the generation.

    Args:
        current: What the pointer names; None where there is nothing.
        committed: Whether its soak was passed.
        last_number: The highest generation on disk.
        lost: How often a journal was lost here before, as far as is known.
        now: Seconds since 1970.
    """
    if current is None:
        return State(last_number=last_number, lost=lost + 1)
    changes = tuple(
        Change(
            model=name, generation=pin.assignment, release=pin.release, version=pin.version, start_before=0
        )
        for name, pin in current.models.items()
    )
    update = Update(
        phase=Phase.COMMITTED if committed else Phase.SOAKING,
        changes=changes,
        number=current.number,
        previous=current.previous,
        since=now,
        code="journal_lost",
    )
    return State(
        last_number=max(last_number, current.number),
        floors=Floors(time=current.created_at, generations=dict(current.assignments)),
        update=update,
        history={name: (pin.release, pin.version) for name, pin in current.models.items()},
        lost=lost + 1,
    )
