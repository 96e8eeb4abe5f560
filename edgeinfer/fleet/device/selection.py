"""What a document of assignments asks of a device that has its own past: a pure decision."""

from __future__ import annotations

from collections.abc import Mapping

from edgeinfer.fleet.device.assignment import Assignment, SignedAssignments
from edgeinfer.fleet.device.journal import Change, Update

__all__ = ["lease_over", "pending", "revoked", "superseded"]


def pending(
    document: SignedAssignments, floors: Mapping[str, tuple[int, ...]], now: float
) -> tuple[Change, ...]:
    """Return the models that switch together next.

    Assignments of one generation (epoch, n) belong together: all of them are activated by one rename, or
    none. The lowest generation comes first.

    Args:
        document: Verified.
        floors: The highest accepted generation of each model.
        now: Seconds since 1970.
    """
    new = [
        a for a in document.assignments if a.generation > floors.get(a.model, (0, 0)) and not a.expired(now)
    ]
    first = min((a.generation for a in new), default=None)
    return tuple(_change(a) for a in new if a.generation == first)


def _change(assignment: Assignment) -> Change:
    return Change(
        model=assignment.model,
        generation=assignment.generation,
        release=assignment.release,
        version=assignment.version,
        start_before=assignment.start_before,
        stage=assignment.stage,
    )


def superseded(update: Update, document: SignedAssignments) -> bool:
    """Whether a document has later assignments for a model of the update."""
    latest = {a.model: a.generation for a in document.assignments}
    return any(latest.get(change.model, (0, 0)) > change.generation for change in update.changes)


def revoked(update: Update, document: SignedAssignments) -> bool:
    """Whether a later document does not name the update's assignments any more (the operator's *hold*)."""
    named = {(a.model, a.generation) for a in document.assignments}
    return any((change.model, change.generation) not in named for change in update.changes)


def lease_over(update: Update, now: float) -> bool:
    """Whether an assignment of the update had to be activated before now."""
    return any(change.start_before and now >= change.start_before for change in update.changes)
