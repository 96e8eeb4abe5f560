"""Assignments: what a device is to run, signed by an online key.

Releases are signed by offline keys, assignments by a key that a server holds (the split of Uptane). Who has
that key can choose among signed releases, and no more. Which keys may sign assignments stands in the signed
metadata of the repository, so that they are rotated there.

The document of one device, `desired/DEVICE.json`:

    {"signatures": [{"keyid": …, "sig": …}],
     "signed": {"assignments": […], "device": …, "incarnation": …, "issued_at": …}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import attrs

from edgeinfer.artifact.decode import encode
from edgeinfer.fleet.device.documents import canonical_json, decode_document, parse_document
from edgeinfer.fleet.device.release import DIGEST, NAME
from edgeinfer.fleet.errors import (
    BadSignatureError,
    ExpiredLeaseError,
    ForeignAssignmentError,
    ReplayedAssignmentError,
)
from edgeinfer.values import as_tuple

__all__ = [
    "MAX_ASSIGNMENTS_BYTES",
    "Assignment",
    "AssignmentKeys",
    "Signature",
    "SignedAssignments",
    "verify_assignments",
]

MAX_ASSIGNMENTS_BYTES = 1 << 18
_WHAT = "assignments"
_COUNT = attrs.validators.ge(0)


def _pair(value: Iterable[int]) -> Any:
    return tuple(value)


def _generation(_: object, __: object, value: tuple[int, int]) -> None:
    if len(value) != 2 or any(type(number) is not int or number < 0 for number in value):
        raise ValueError(f"{value!r} is no generation (epoch, n)")


def _release(_: object, __: object, value: str) -> None:
    if value and DIGEST.match(value) is None:
        raise ValueError(f"{value!r} is no digest of a release, and not empty")


@final
@attrs.frozen(kw_only=True)
class Assignment:
    """What a device is to run of one model.

    Attributes:
        device: The device's name.
        incarnation: Which life of the device it is for; a reflashed device begins a new one.
        model: The model's name.
        generation: (epoch, n). A device never goes back; the epoch rises when the operator's database is
            restored.
        release: The digest of the `release.json`; empty withdraws the model from the device.
        version: The release's version, for people.
        start_before: The lease: after this time (seconds since 1970 UTC) it must not be activated any more;
            0 for no end.
        stage: `shadow` to run it beside the current release first; None for neither.
    """

    device: str = attrs.field(validator=attrs.validators.min_len(1))
    incarnation: int = attrs.field(validator=_COUNT)
    model: str = attrs.field(validator=attrs.validators.matches_re(NAME))
    generation: tuple[int, int] = attrs.field(converter=_pair, validator=_generation)
    release: str = attrs.field(validator=_release)
    version: str = ""
    start_before: int = attrs.field(default=0, validator=_COUNT)
    stage: str | None = None

    def expired(self, now: float) -> bool:
        """Whether its lease has ended."""
        return bool(self.start_before) and now >= self.start_before


@final
@attrs.frozen(kw_only=True)
class Signature:
    """One signature, with the id of the key that made it; both hexadecimal."""

    keyid: str
    sig: str


@final
@attrs.frozen(kw_only=True)
class AssignmentKeys:
    """Who may sign assignments.

    Attributes:
        keys: The public keys by id, as securesystemslib has them.
        threshold: How many different ones must have signed.
    """

    keys: Mapping[str, Any]
    threshold: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AssignmentKeys:
        """Read what `to_dict` wrote, from verified metadata.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        from securesystemslib.signer import Key

        keys = {keyid: Key.from_dict(keyid, dict(key)) for keyid, key in fields["keys"].items()}
        return cls(keys=keys, threshold=fields["threshold"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "keys": {keyid: key.to_dict() for keyid, key in self.keys.items()},
            "threshold": self.threshold,
        }

    def verify(self, payload: bytes, signatures: tuple[Signature, ...]) -> None:
        """Check that enough of the keys have signed.

        Raises:
            BadSignatureError: They have not.
        """
        from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
        from securesystemslib.signer import Signature as AnySignature

        good = set()
        for signature in signatures:
            key = self.keys.get(signature.keyid)
            if key is None:
                continue
            try:
                key.verify_signature(AnySignature(signature.keyid, signature.sig), payload)
            except (UnverifiedSignatureError, VerificationError, ValueError):
                continue
            good.add(key.keyval["public"])  # one key under two ids counts once
        if len(good) < self.threshold:
            raise BadSignatureError(
                "Too few of the keys for assignments have signed.",
                expected=f"{self.threshold} of {', '.join(sorted(k[:12] for k in self.keys)) or 'no keys'}",
                found=f"{len(good)} good signatures of {len(signatures)}",
                hint="The server's assignment key is not the one in the repository's signed metadata.",
            )


@final
@attrs.frozen(kw_only=True)
class SignedAssignments:
    """All assignments of one device.

    Attributes:
        device: The device's name.
        incarnation: The device's life that they are for.
        issued_at: When they were signed.
        assignments: One a model.
    """

    device: str
    incarnation: int = attrs.field(validator=_COUNT)
    issued_at: int = attrs.field(validator=_COUNT)
    assignments: tuple[Assignment, ...] = attrs.field(default=(), converter=as_tuple)

    def __attrs_post_init__(self) -> None:
        models = [assignment.model for assignment in self.assignments]
        if len(set(models)) != len(models):
            raise ValueError("two assignments are for one model")
        for assignment in self.assignments:
            if (assignment.device, assignment.incarnation) != (self.device, self.incarnation):
                raise ValueError(
                    f"the assignment of {assignment.model} is for another device than the document"
                )

    def payload(self) -> bytes:
        """Return the bytes that are signed."""
        return canonical_json(encode(self))

    def to_bytes(self, signatures: tuple[Signature, ...]) -> bytes:
        """Return the document with the signatures over `payload()`."""
        return canonical_json({"signatures": encode(signatures), "signed": encode(self)})


@final
@attrs.frozen(kw_only=True)
class _Envelope:
    signatures: tuple[Signature, ...]
    signed: Mapping[str, Any]


def verify_assignments(
    data: bytes,
    keys: AssignmentKeys,
    *,
    device: str,
    incarnation: int,
    floors: Mapping[str, tuple[int, int]],
    now: float,
) -> SignedAssignments:
    """Read a document of assignments that came from anywhere.

    Args:
        data: The document.
        keys: Who may sign; `TrustedRepository.assignment_keys`.
        device: This device's name.
        incarnation: Its life.
        floors: The highest generation that was accepted before, by model. That one itself may come again:
            the caller compares it with what it has, and its lease is the caller's to watch.
        now: The time, in seconds since 1970 UTC.

    Returns:
        The document without the assignments whose lease has ended before they were accepted.

    Raises:
        DocumentError: It is no such document, or too large.
        BadSignatureError: Too few of the keys have signed.
        ForeignAssignmentError: It is for another device, or another life of this one.
        ReplayedAssignmentError: An assignment is older than one that was accepted.
        ExpiredLeaseError: Nothing is left of it: every assignment's lease has ended.
    """
    fields = parse_document(data, what=_WHAT, max_bytes=MAX_ASSIGNMENTS_BYTES)
    envelope = decode_document(_Envelope, fields, what=_WHAT, known=frozenset({"signatures", "signed"}))
    keys.verify(canonical_json(envelope.signed), envelope.signatures)
    known = frozenset(field.name for field in attrs.fields(SignedAssignments))
    document = decode_document(SignedAssignments, dict(envelope.signed), what=_WHAT, known=known)
    if (document.device, document.incarnation) != (device, incarnation):
        raise ForeignAssignmentError(
            "The assignments are for another device, or for another life of this one.",
            expected=f"{device!r}, incarnation {incarnation}",
            found=f"{document.device!r}, incarnation {document.incarnation}",
        )
    for assignment in document.assignments:
        floor = floors.get(assignment.model, (0, 0))
        if assignment.generation < floor:
            raise ReplayedAssignmentError(
                "An assignment is older than one that was accepted before.",
                where=assignment.model,
                expected=f"generation {tuple(floor)} or later",
                found=f"generation {assignment.generation}",
            )
    live = tuple(a for a in document.assignments if not _too_late(a, floors, now))
    if document.assignments and not live:
        first = document.assignments[0]
        raise ExpiredLeaseError(
            "The assignments had to be started earlier.",
            where=", ".join(assignment.model for assignment in document.assignments),
            expected=f"a start before {first.start_before}",
            found=f"the time is {now:.0f}",
            hint="Check the device's clock; the server renews the lease of a device that it hears from.",
        )
    return attrs.evolve(document, assignments=live)


def _too_late(assignment: Assignment, floors: Mapping[str, tuple[int, int]], now: float) -> bool:
    accepted = tuple(floors.get(assignment.model, ())) == assignment.generation
    return not accepted and assignment.expired(now)
