"""Private keys that are not in the ring: named by a URI, as those of an HSM or a key service."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer

from edgeinfer.cli import main
from edgeinfer.fleet.errors import KeyFileError
from edgeinfer.fleet.operator.assigning import signer_of
from edgeinfer.fleet.operator.key_files import public_key_of
from tests.fleet.toy_fleet import ToyFleet


@pytest.fixture
def toy(tmp_path) -> ToyFleet:
    return ToyFleet(tmp_path / "fleet")


@pytest.fixture
def pair(tmp_path):
    """An ECDSA key of P-256, the kind that an HSM has: the paths of its private and its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_role_is_signed_by_a_key_that_a_uri_names(toy, pair, capsys):
    private, public = pair
    old = next(iter(toy.keys.public("releases")))
    for options in (["--add", f"file2:{private}={public}"], ["--remove", old[:12]]):
        assert main(["fleet", "rotate", str(toy.folder), "releases", *options]) == 0, capsys.readouterr().err
    (entry,) = [e for e in toy.keys.entries.values() if e.uri.startswith("file2:")]
    assert entry.public.scheme == "ecdsa-sha2-nistp256"
    (toy.folder / "keys" / "offline" / f"releases-{old[:12]}.pem").unlink()
    release = toy.publish("m", "1")
    assert list(toy.repository.state().releases["models-m"].signatures) == [entry.public.keyid]
    device = toy.device()
    device.refresh()
    assert device.release("m", "1", release.digest) == release


class Unplugged(Signer):
    """A key of a device that is not there when it is to sign."""

    def __init__(self, public_key) -> None:
        self._public_key = public_key

    @property
    def public_key(self):
        return self._public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri, public_key, secrets_handler=None):
        return cls(public_key)

    def sign(self, payload):
        raise ValueError("no token was found")


@pytest.mark.parametrize("role", ["releases", "timestamp", "assignments"])
def test_a_key_that_cannot_sign_counts_as_absent_and_is_told(toy, pair, monkeypatch, caplog, role):
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "unplugged", Unplugged)
    public = public_key_of(pair[1].read_bytes())
    # As if the role had this key alone.
    monkeypatch.setattr(toy.keys, "signers", _signers(toy, {*toy.keys.public(role)}, Unplugged(public)))
    if role == "releases":
        change = lambda draft: draft.edit_releases("m")  # noqa: E731
        assert toy.repository.update(change) == {"models-m": 1}  # a proposal, that waits for the key
    elif role == "timestamp":
        with pytest.raises(KeyFileError, match="timestamp is not here"):
            toy.publish("m", "1")
    else:
        with pytest.raises(KeyFileError, match="no key here"):
            signer_of(toy.keys)(b"{}")
    assert f"The key {public.keyid[:12]} cannot sign: ValueError: no token was found." in caplog.text


def _signers(toy, keyids, unplugged):
    real = toy.keys.signers

    def signers(asked):
        asked = set(asked)
        return [*real(asked - keyids), *([unplugged] if asked & keyids else [])]

    return signers
