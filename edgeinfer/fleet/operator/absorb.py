"""`absorb`: what a report means for a device's part in a rollout.

It is pure, and the only place where an outcome changes because of what a device said.
"""

from __future__ import annotations

from typing import final

import attrs

from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator.member import GRACE_S, Generation, Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome

__all__ = ["RETRYABLE", "Heard", "absorb", "adopt"]

# Codes of failures that may be gone the next time: nothing about the release is known from them.
RETRYABLE = frozenset(
    {"clock", "disk", "download", "lease", "lease_expired", "network", "temperature", "timeout"}
)
_TOO_LATE = frozenset({"lease", "lease_expired"})  # of these: another document, another lease
# Codes of devices that went back because they were told to: that says nothing of the release either.
_ASKED = frozenset({"superseded", "withdrawn"})
_FINAL = {
    Phase.ROLLED_BACK: Outcome.ROLLED_BACK,
    Phase.FAILED: Outcome.FAILED,
    Phase.DEGRADED: Outcome.FAILED,
    Phase.REJECTED: Outcome.REJECTED,
}


@final
@attrs.frozen(kw_only=True)
class Heard:
    """What matters of a report.

    Attributes:
        generation: Of the document that it answers.
        phase: Where the update stands.
        code: Why.
        digest: Of the release that is really loaded.
        at: When it was received, by the database's clock: a device's own clock proves nothing.
        facts_changed: Whether the device is no longer what it was: its hardware class, memory or runtimes.
    """

    generation: Generation
    phase: Phase
    code: str = ""
    digest: str = ""
    at: int = 0
    facts_changed: bool = False


def absorb(member: Member, heard: Heard, *, release: str, retries: int) -> Member:
    """Return what a report makes of a device's part in a rollout.

    Args:
        member: What it was.
        heard: The report. Older ones than were heard before do not come here.
        release: The rollout's release.
        retries: How often a retryable failure is tried again.
    """
    if member.motion.in_flight or member.outcome is Outcome.ACCEPTED:
        member = attrs.evolve(member, heard_at=heard.at)
    if member.outcome is Outcome.WITHDRAWN:
        return member
    if heard.facts_changed and member.outcome is Outcome.REJECTED and member.motion is Motion.STILL:
        # What was refused because it did not fit may fit now.
        return attrs.evolve(member, motion=Motion.AGAIN)
    if member.exposures and heard.generation == member.forward:
        member = _answered(member, heard, release, retries)
    elif member.motion is Motion.FORWARD and heard.generation > member.forward:
        # A document of another rollout replaced this one's.
        member = attrs.evolve(member, motion=Motion.STILL)
    elif _has_lost_it(member, heard):
        motion = member.motion if member.motion is Motion.BACK else Motion.STILL  # it may yet go back
        member = attrs.evolve(member, outcome=Outcome.OFFLINE, motion=motion, code="")
    if _went_back(member, heard):
        return attrs.evolve(member, motion=Motion.REVERTED)
    if heard.generation < member.back:
        return _had_it_before(member, heard, release)
    if member.motion in (Motion.BACK, Motion.KEPT) and heard.phase.final:
        has_it = heard.generation == member.back and heard.digest == member.target
        return _kept(member, heard, retries) if has_it else attrs.evolve(member, motion=Motion.REVERTED)
    return member


def adopt(member: Member, heard: Heard, *, release: str) -> Member:
    """Return what a device is that waits in a rollout, and has its release by a document that was forgotten.

    Args:
        member: What it was: the database came from a backup.
        heard: The report.
        release: The rollout's release.
    """
    waits = member.motion is Motion.STILL and member.outcome in (Outcome.WAITING, Outcome.OFFLINE)
    if waits and heard.phase is Phase.COMMITTED and heard.digest == release:
        return attrs.evolve(member, outcome=Outcome.SUCCESS, target=release, heard_at=heard.at)
    return member


def _had_it_before(member: Member, heard: Heard, release: str) -> Member:
    """Return what becomes of a device that was taken to be back, and has not seen what asked it back.

    The document that gave it the release ran out, and so did the one that asked it back: it began in time,
    and was heard of late. What it has stays until it is asked once more, with a place in the site's budget.
    """
    has_it = heard.phase in (Phase.COMMITTED, Phase.DEGRADED) and heard.digest == member.target
    if member.motion is not Motion.REVERTED or not has_it or not member.target:
        return member
    if heard.phase is Phase.DEGRADED:
        return attrs.evolve(member, outcome=Outcome.FAILED, motion=Motion.STUCK, code=heard.code)
    outcome = Outcome.SUCCESS if member.target == release else Outcome.WAITING
    return attrs.evolve(member, outcome=outcome, motion=Motion.STILL, code=heard.code)


def _went_back(member: Member, heard: Heard) -> bool:
    """Whether a device went back by one of the documents that asked it, however late it is heard of.

    That document may have run out since, and another one may have followed it.
    """
    return (
        member.motion in (Motion.STILL, Motion.STUCK, Motion.BACK, Motion.KEPT)
        and member.forward < heard.generation <= member.back
        and heard.phase.final
        and heard.digest != member.target
    )


def _kept(member: Member, heard: Heard, retries: int) -> Member:
    """Return what becomes of a device that could not go back: it is asked again, or keeps the release."""
    if member.motion is Motion.KEPT:
        return member
    failed = heard.phase is Phase.DEGRADED or member.outcome is Outcome.FAILED
    again = heard.code in _TOO_LATE or (heard.code in RETRYABLE and member.attempts < retries)
    asked = Motion.STUCK if failed else Motion.STILL
    return attrs.evolve(
        member,
        outcome=Outcome.FAILED if failed else Outcome.SUCCESS,
        motion=asked if again else Motion.KEPT,
        attempts=member.attempts + 1,
    )


def _has_lost_it(member: Member, heard: Heard) -> bool:
    """Whether a device knows nothing of the document that it had answered, and it is too late to begin.

    It was reset; or what accepted the document was another device of its name; or it has gone on since to
    something that this database, which came from a backup, does not know.
    """
    accepted = member.motion.in_flight and member.outcome in (Outcome.ACCEPTED, Outcome.TIMED_OUT)
    gone_on = (
        (member.outcome, member.motion) == (Outcome.SUCCESS, Motion.STILL)
        and heard.digest != member.target
        and heard.generation > (0, 0)  # else it was reflashed, and gets a document at once: see `reissue`
    )
    ran_out = heard.at > member.start_before + GRACE_S
    return (accepted or gone_on) and ran_out and heard.phase.final and heard.generation < member.forward


def _answered(member: Member, heard: Heard, release: str, retries: int) -> Member:
    forward = member.motion is Motion.FORWARD
    if heard.phase is Phase.COMMITTED and heard.digest == member.target:
        if member.target != release:  # a stepping stone; the next document is one step further
            waits = Motion.STILL if forward else member.motion  # see `_had_it_before`
            return attrs.evolve(member, outcome=Outcome.WAITING, motion=waits, attempts=0)
        return _decided(member, Outcome.SUCCESS, heard)
    if heard.phase is Phase.COMMITTED:
        failed = _decided(member, Outcome.FAILED, heard)
        return attrs.evolve(failed, code=heard.code or "another digest is loaded")
    if heard.phase is Phase.SUPERSEDED or (heard.phase is Phase.ROLLED_BACK and heard.code in _ASKED):
        # It does not work on it any more. Where it was asked back, it need not answer that, too.
        given_up = member.motion is Motion.BACK and member.outcome is Outcome.ACCEPTED
        return attrs.evolve(member, outcome=Outcome.OFFLINE) if given_up else member
    if heard.phase in _FINAL:
        transient = heard.code in RETRYABLE and heard.phase in (Phase.FAILED, Phase.REJECTED)
        if transient and forward and member.attempts < retries:
            return attrs.evolve(
                member,
                outcome=Outcome.ACCEPTED,
                motion=Motion.AGAIN,
                attempts=member.attempts + 1,
                code=heard.code,
            )
        return _decided(member, _FINAL[heard.phase], heard)
    if not heard.phase.final and member.outcome in (Outcome.WAITING, Outcome.OFFLINE, Outcome.TIMED_OUT):
        # Its document ran out, and this is heard late: it began in time, and is on its way after all.
        moves = {Motion.STILL: Motion.FORWARD, Motion.REVERTED: Motion.BACK}
        motion = moves.get(member.motion, member.motion)
        return attrs.evolve(
            member, outcome=Outcome.ACCEPTED, motion=motion, code=heard.code, heard_at=heard.at
        )
    return member


def _decided(member: Member, outcome: Outcome, heard: Heard) -> Member:
    motion = member.motion
    if motion not in (Motion.BACK, Motion.KEPT, Motion.REVERTED):
        stuck = heard.phase is Phase.DEGRADED and heard.digest == member.target
        motion = Motion.STUCK if stuck else Motion.STILL
    return attrs.evolve(member, outcome=outcome, motion=motion, code=heard.code)
