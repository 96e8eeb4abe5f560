"""Keys: who signs what, and where the private halves are.

    keyring.json           the public keys, each with its role and the URI of its private half
    root.json              the newest root that this operator trusts
    offline/ROLE-ID.pem    private keys of the roles root, targets and releases: take them off the machine
    online/ROLE-ID.pem     private keys of the roles snapshot, timestamp and assignments
    proposal.json          what waits for further signatures

A private key is an Ed25519 key in PKCS#8, encrypted with a passphrase; or it never leaves an HSM or a key
service, and is named by one of securesystemslib's URIs (`hsm:…`, `awskms:…`, `gcpkms:…`, `azurekms:…`).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias, final

import attrs
from securesystemslib.signer import CryptoSigner, Key, Signer

from edgeinfer.atomic import write_file
from edgeinfer.fleet.errors import KeyFileError
from edgeinfer.fleet.operator.key_files import is_encrypted, need_cryptography, pem_of, signer_of

__all__ = [
    "OFFLINE",
    "ONLINE",
    "PASSPHRASE_VARIABLE",
    "KeyEntry",
    "KeyRing",
    "Passphrase",
    "ask_passphrase",
]

OFFLINE = ("root", "targets", "releases")
ONLINE = ("snapshot", "timestamp", "assignments")
PASSPHRASE_VARIABLE = "EDGEINFER_FLEET_PASSPHRASE"  # noqa: S105 (its name)
# Returns the passphrase of what it is told, such as "root key 3fa1…" or "new keys"; None for none.
Passphrase: TypeAlias = "Callable[[str], str | None]"  # noqa: S105 (a type)
_PEM = "pem:"


def ask_passphrase(what: str) -> str | None:
    """Return the passphrase from the environment or from the person at the terminal, else None."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given:
        return given
    return getpass.getpass(f"Passphrase of the {what}: ") or None if sys.stdin.isatty() else None


@final
@attrs.frozen(kw_only=True)
class KeyEntry:
    """A key of the ring.

    Attributes:
        role: What it signs.
        uri: Where its private half is: `pem:` and a path within the ring, or one of securesystemslib's URIs.
        public: Its public half.
    """

    role: str
    uri: str
    public: Key


@final
class KeyRing:
    """The keys of one fleet, in a folder that is not published.

    Args:
        folder: Made when it is first written to.
        passphrase: Asked when an encrypted key is needed or made. Default: the environment variable
            `EDGEINFER_FLEET_PASSPHRASE`, else the person at the terminal.
    """

    def __init__(self, folder: str | os.PathLike[str], passphrase: Passphrase = ask_passphrase) -> None:
        self.folder = Path(folder)
        self._passphrase = passphrase
        self._signers: dict[str, Signer] = {}
        self._entries: dict[str, KeyEntry] = {}
        self._entries_state: tuple[int, int, int] | None = None
        self._secrets: list[str] = []
        self._new_secret: str | None = None

    @property
    def entries(self) -> dict[str, KeyEntry]:
        """All keys by id."""
        path = self.folder / "keyring.json"
        try:
            status = path.stat()
            state = (status.st_mtime_ns, status.st_ino, status.st_size)
            if state == self._entries_state:  # a controller signs for each device
                return self._entries
            found = json.loads(path.read_bytes())
            self._entries = {
                keyid: KeyEntry(
                    role=fields["role"], uri=fields["uri"], public=Key.from_dict(keyid, fields["public"])
                )
                for keyid, fields in found["keys"].items()
            }
            self._entries_state = state
            return self._entries
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KeyFileError(f"The key ring cannot be read: {error}.", where=str(path)) from error

    def public(self, role: str) -> dict[str, Key]:
        """Return the public keys of a role by id."""
        return {keyid: entry.public for keyid, entry in self.entries.items() if entry.role == role}

    def generate(self, role: str, *, encrypt: bool = True) -> Key:
        """Make a key and keep it.

        Args:
            role: One of `OFFLINE` or `ONLINE`.
            encrypt: Encrypt it with the passphrase.

        Raises:
            KeyFileError: There is no passphrase.
        """
        need_cryptography()
        signer = CryptoSigner.generate_ed25519()
        key = signer.public_key
        name = f"{'online' if role in ONLINE else 'offline'}/{role}-{key.keyid[:12]}.pem"
        if encrypt and self._new_secret is None:
            self._new_secret = self._passphrase("new keys")
        secret = self._new_secret if encrypt else None
        if encrypt and not secret:
            raise KeyFileError(
                "There is no passphrase to encrypt a key with.",
                where=name,
                hint=f"Set {PASSPHRASE_VARIABLE}, or run this at a terminal.",
            )
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem_of(signer, secret))
            file.flush()
            os.fsync(descriptor)
        self._signers[key.keyid] = signer
        self.register(role, f"{_PEM}{name}", key)
        return key

    @property
    def root(self) -> bytes:
        """The newest `root.json` that this operator trusts.

        Raises:
            KeyFileError: There is none.
        """
        try:
            return (self.folder / "root.json").read_bytes()
        except OSError as error:
            raise KeyFileError(
                "The key ring has no root of trust.",
                where=str(self.folder / "root.json"),
                hint="Make a fleet with `edgeinfer fleet init`, or give the folder of its keys.",
            ) from error

    def trust(self, root: bytes) -> None:
        """Keep a verified `root.json` as the newest."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(self.folder / "root.json", root)

    def register(self, role: str, uri: str, public: Key) -> None:
        """Keep a key whose private half is somewhere else, such as in an HSM."""
        entries = {**self.entries, public.keyid: KeyEntry(role=role, uri=uri, public=public)}
        fields = {
            keyid: {"role": entry.role, "uri": entry.uri, "public": entry.public.to_dict()}
            for keyid, entry in entries.items()
        }
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(
            self.folder / "keyring.json", json.dumps({"keys": fields}, indent=1, sort_keys=True).encode()
        )

    def signers(self, keyids: Iterable[str]) -> list[Signer]:
        """Return signers for those of the keys whose private halves are here.

        Raises:
            KeyFileError: A key is here but cannot be decrypted or is another one.
        """
        entries = self.entries
        return [signer for keyid in keyids if keyid in entries and (signer := self._signer(entries[keyid]))]

    def _signer(self, entry: KeyEntry) -> Signer | None:
        keyid = entry.public.keyid
        if keyid not in self._signers:
            made = self._open(entry)
            if made is None:
                return None
            self._signers[keyid] = made
        return self._signers[keyid]

    def _open(self, entry: KeyEntry) -> Signer | None:
        what = f"{entry.role} key {entry.public.keyid[:12]}"
        if not entry.uri.startswith(_PEM):
            try:
                return Signer.from_priv_key_uri(
                    entry.uri, entry.public, lambda secret: self._passphrase(f"{what} ({secret})") or ""
                )
            except Exception as error:  # each service has its own
                raise KeyFileError(
                    f"A key cannot be used: {type(error).__name__}: {error}.", where=f"{what}: {entry.uri}"
                ) from error
        path = self.folder / entry.uri.removeprefix(_PEM)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None  # it is kept offline
        if not is_encrypted(data):
            return signer_of(data, entry.public, None)
        for secret in self._secrets:  # most keys of one operator have one passphrase
            with contextlib.suppress(KeyFileError):
                return signer_of(data, entry.public, secret)
        given = self._passphrase(what)
        try:
            signer = signer_of(data, entry.public, given)
        except KeyFileError as error:
            error.hint = f"Set {PASSPHRASE_VARIABLE}, or run this at a terminal."
            error.where = f"{what}: {path}"
            raise
        self._secrets.append(given or "")
        return signer
