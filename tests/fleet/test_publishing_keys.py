"""Thresholds of signatures, and keys: where they are and who may use them."""

from __future__ import annotations

import json

import pytest
from securesystemslib.signer import CryptoSigner

import edgeinfer as ei
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import (
    FleetError,
    PublishConflictError,
    RepositoryError,
    TrustError,
)
from edgeinfer.fleet.operator.ceremonies import rotate, withdraw
from edgeinfer.fleet.operator.keys import KeyRing
from edgeinfer.fleet.operator.publishing import publish
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import FolderStorage
from tests.fleet.toy_fleet import ToyFleet


def with_storage(toy: ToyFleet, storage) -> Repository:
    return Repository(storage, KeyRing(toy.folder / "keys", lambda _: None), clock=lambda: toy.now)


def test_a_release_waits_for_the_second_signature(tmp_path, artifact):
    toy = ToyFleet(tmp_path, counts={"releases": 2}, thresholds={"releases": 2})
    second = max((toy.folder / "keys" / "offline").glob("releases-*"))
    away = tmp_path / second.name
    second.rename(away)
    repository = with_storage(toy, FolderStorage(toy.public))
    published = publish(repository, "m", artifact)
    assert published.missing == {"models-m": 1}
    assert toy.device().models == ()
    with pytest.raises(PublishConflictError, match="waits"):
        publish(repository, "m", artifact)
    away.rename(second)
    later = with_storage(toy, FolderStorage(toy.public))
    assert later.sign() == {}
    assert toy.device().release("m", "1", published.release.digest) == published.release


def test_what_waits_is_refused_after_the_repository_moved_on(tmp_path):
    toy = ToyFleet(tmp_path, counts={"targets": 2}, thresholds={"targets": 2})
    second = max((toy.folder / "keys" / "offline").glob("targets-*"))
    away = tmp_path / second.name
    second.rename(away)
    repository = with_storage(toy, FolderStorage(toy.public))
    assert withdraw(repository, "0" * 64) == {"targets": 1}
    proposal = (toy.keys.folder / "proposal.json").read_bytes()
    repository.drop()
    away.rename(second)
    assert withdraw(with_storage(toy, FolderStorage(toy.public)), "1" * 64) == {}
    (toy.keys.folder / "proposal.json").write_bytes(proposal)
    with pytest.raises(PublishConflictError, match="moved on"):
        with_storage(toy, FolderStorage(toy.public)).sign()


@pytest.mark.parametrize("role", ["targets", "snapshot", "models-m"])
def test_a_publisher_signs_nothing_on_top_of_what_another_wrote(toy, role):
    """Whoever can write to the store must not get the publisher's signature for it."""
    toy.publish("m", "1")
    path = toy.path(role)
    data = json.loads(path.read_bytes())
    data["signed"]["edgeinfer-withdrawn"] = [["0" * 64, "*"]]
    path.write_bytes(json.dumps(data).encode())
    with pytest.raises(RepositoryError, match="not what its publishers signed"):
        toy.publish("m", "2")


def test_a_threshold_out_of_reach_is_refused(tmp_path, toy):
    with pytest.raises(RepositoryError, match="out of reach"):
        ToyFleet(tmp_path / "new", thresholds={"root": 2})
    with pytest.raises(RepositoryError, match="Too few keys"):
        rotate(toy.repository, "root", threshold=2)
    with pytest.raises(RepositoryError, match="no such key"):
        rotate(toy.repository, "root", remove=["zzz"])
    with pytest.raises(RepositoryError, match="no such role"):
        rotate(toy.repository, "nonsense")


def test_keys_are_encrypted(tmp_path):
    ring = KeyRing(tmp_path, lambda _: "correct horse")
    key = ring.generate("root")
    (file,) = (tmp_path / "offline").iterdir()
    assert b"ENCRYPTED" in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    payload = KeyRing(tmp_path, lambda _: "correct horse").signers([key.keyid])[0].sign(b"x")
    key.verify_signature(payload, b"x")
    for wrong in ("battery staple", "", None):
        with pytest.raises(FleetError, match="cannot be decrypted"):
            KeyRing(tmp_path, lambda _, wrong=wrong: wrong).signers([key.keyid])
    with pytest.raises(FleetError, match="no passphrase"):
        KeyRing(tmp_path, lambda _: None).generate("root")


def test_a_key_may_be_wherever_securesystemslib_reaches(toy, tmp_path):
    signer = CryptoSigner.generate_ecdsa()
    (tmp_path / "elsewhere.pem").write_bytes(signer.private_bytes)
    toy.keys.register("timestamp", f"file2:{tmp_path / 'elsewhere.pem'}", signer.public_key)
    old = [keyid for keyid in toy.keys.public("timestamp") if keyid != signer.public_key.keyid]
    assert rotate(toy.repository, "timestamp", add=[signer.public_key], remove=old) == {}
    again = with_storage(toy, FolderStorage(toy.public))
    again.sign()
    toy.device().refresh()
    signed = json.loads((toy.public / "metadata" / "timestamp.json").read_bytes())
    assert [s["keyid"] for s in signed["signatures"]] == [signer.public_key.keyid]
    (tmp_path / "elsewhere.pem").write_bytes(b"")
    with pytest.raises(FleetError, match="cannot be used"):
        with_storage(toy, FolderStorage(toy.public)).sign()


def test_a_passphrase_is_asked_once(tmp_path):
    asked = []

    def ask(what: str) -> str:
        asked.append(what)
        return "secret"

    made = ei.fleet.open(tmp_path, passphrase=ask)
    assert asked == ["new keys"]
    asked.clear()
    Repository(made.repository.storage, KeyRing(tmp_path / "keys", ask)).update(lambda _: None)
    assert len(asked) == 1


def test_a_fleet_is_made_where_there_is_none(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("EDGEINFER_FLEET_PASSPHRASE", raising=False)
    made = ei.fleet.open(tmp_path / "fleet")
    assert "not encrypted" in caplog.text
    assert TrustedRepository(tmp_path / "d", tmp_path / "fleet", root=made.root).models == ()
    caplog.clear()
    monkeypatch.setenv("EDGEINFER_FLEET_PASSPHRASE", "secret")
    assert ei.fleet.open(tmp_path / "fleet").root == made.root
    ei.fleet.open(tmp_path / "other").repository.sign()
    assert not caplog.text
    assert b"ENCRYPTED" in next((tmp_path / "other" / "keys" / "online").iterdir()).read_bytes()


def test_another_roots_repository_is_not_trusted(tmp_path, toy):
    other = ToyFleet(tmp_path / "other")
    other_root = ei.fleet.open(tmp_path / "own", passphrase=lambda _: "x").root
    with pytest.raises(TrustError):
        TrustedRepository(tmp_path / "d", other.public, root=other_root, clock=lambda: toy.now).refresh()
