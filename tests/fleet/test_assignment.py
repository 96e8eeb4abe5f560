"""Assignments: signed, for one device and one life of it, never backwards, with a lease."""

from __future__ import annotations

import json

import attrs
import pytest
from securesystemslib.signer import CryptoSigner

from edgeinfer.fleet.device.assignment import (
    MAX_ASSIGNMENTS_BYTES,
    Assignment,
    AssignmentKeys,
    Signature,
    SignedAssignments,
    verify_assignments,
)
from edgeinfer.fleet.device.documents import canonical_json
from edgeinfer.fleet.errors import (
    BadSignatureError,
    DocumentError,
    ExpiredLeaseError,
    ForeignAssignmentError,
    ReplayedAssignmentError,
)

NOW = 1000
SIGNERS = [CryptoSigner.generate_ed25519() for _ in range(3)]
KEYS = AssignmentKeys(keys={s.public_key.keyid: s.public_key for s in SIGNERS[:2]})


def assignment(**fields) -> Assignment:
    values = {"device": "d1", "incarnation": 3, "model": "m", "generation": (1, 5), "release": "a" * 64}
    return Assignment(**{**values, "start_before": 2000, **fields})


def document(*assignments: Assignment, **fields) -> SignedAssignments:
    values = {"device": "d1", "incarnation": 3, "issued_at": 900, **fields}
    return SignedAssignments(**values, assignments=assignments or (assignment(),))


def signed(made: SignedAssignments, signers=SIGNERS[:1]) -> bytes:
    found = [signer.sign(made.payload()) for signer in signers]
    return made.to_bytes(tuple(Signature(keyid=s.keyid, sig=s.signature) for s in found))


def verify(data: bytes, keys=KEYS, *, floors=None, now=NOW, device="d1", incarnation=3):
    return verify_assignments(
        data, keys, device=device, incarnation=incarnation, floors=floors or {}, now=now
    )


def test_what_was_signed_is_read():
    made = document(assignment(stage="shadow"), assignment(model="n", release="", start_before=0))
    assert verify(signed(made)) == made


def test_keys_survive_their_fields():
    fields = json.loads(json.dumps(KEYS.to_dict()))
    assert verify(signed(document()), AssignmentKeys.from_dict(fields)) == document()


@pytest.mark.parametrize("signers", [[], SIGNERS[2:]])
def test_a_key_that_is_not_trusted_is_refused(signers):
    with pytest.raises(BadSignatureError, match="Too few"):
        verify(signed(document(), signers))


def test_below_the_threshold_is_refused_also_with_one_key_twice():
    two = attrs.evolve(KEYS, threshold=2)
    with pytest.raises(BadSignatureError):
        verify(signed(document(), [SIGNERS[0], SIGNERS[0]]), two)
    key = SIGNERS[0].public_key
    renamed = type(key)("other", key.keytype, key.scheme, key.keyval)
    doubled = AssignmentKeys(keys={key.keyid: key, "other": renamed}, threshold=2)
    signature = SIGNERS[0].sign(document().payload()).signature
    data = document().to_bytes(tuple(Signature(keyid=k, sig=signature) for k in (key.keyid, "other")))
    with pytest.raises(BadSignatureError):
        verify(data, doubled)
    assert verify(signed(document(), SIGNERS[:2]), two) == document()


def test_a_changed_document_is_refused():
    fields = json.loads(signed(document()))
    fields["signed"]["assignments"][0]["release"] = "b" * 64
    with pytest.raises(BadSignatureError):
        verify(canonical_json(fields))


@pytest.mark.parametrize(("device", "incarnation"), [("d2", 3), ("d1", 2), ("d1", 4)])
def test_another_devices_or_another_lifes_is_refused(device, incarnation):
    with pytest.raises(ForeignAssignmentError, match="another device"):
        verify(signed(document()), device=device, incarnation=incarnation)


@pytest.mark.parametrize("floor", [(1, 6), (2, 0)])
def test_an_older_generation_is_refused(floor):
    with pytest.raises(ReplayedAssignmentError, match="older"):
        verify(signed(document()), floors={"m": floor})


def test_an_ended_lease_is_refused_unless_it_was_accepted_before():
    data = signed(document())
    with pytest.raises(ExpiredLeaseError):
        verify(data, now=2000)
    assert verify(data, now=2000, floors={"m": (1, 5)}) == document()


def test_one_ended_lease_does_not_stop_the_other_models():
    late = assignment(model="late", start_before=950)
    assert verify(signed(document(assignment(), late))) == document()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["signed"].update(critical=["x"]),
        lambda d: d["signed"]["assignments"][0].update(generation=[1]),
        lambda d: d["signed"]["assignments"][0].update(release="x"),
        lambda d: d["signed"]["assignments"][0].update(device="d2"),
        lambda d: d["signed"]["assignments"].append(d["signed"]["assignments"][0]),
    ],
)
def test_a_signed_document_of_another_format_is_refused(change):
    fields = json.loads(signed(document()))
    change(fields)
    payload = canonical_json(fields["signed"])
    signature = SIGNERS[0].sign(payload)
    fields["signatures"] = [{"keyid": signature.keyid, "sig": signature.signature}]
    with pytest.raises(DocumentError):
        verify(canonical_json(fields))


def test_what_is_too_large_is_not_parsed():
    with pytest.raises(DocumentError, match="too large"):
        verify(b" " * (MAX_ASSIGNMENTS_BYTES + 1))


def test_a_field_of_a_later_version_is_ignored():
    fields = json.loads(signed(document()))
    fields["signed"]["later"] = 1
    signature = SIGNERS[0].sign(canonical_json(fields["signed"]))
    fields["signatures"] = [{"keyid": signature.keyid, "sig": signature.signature}]
    assert verify(canonical_json(fields)) == document()
