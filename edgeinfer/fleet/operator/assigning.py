"""Signing assignments with the online keys of a repository, and the shelf that its storage is."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from edgeinfer.fleet.device.assignment import Signature
from edgeinfer.fleet.errors import KeyFileError
from edgeinfer.fleet.operator.key_files import signed_if_there
from edgeinfer.fleet.operator.keys import KeyRing
from edgeinfer.fleet.operator.storage import Storage

__all__ = ["StorageShelf", "signer_of"]

_ANCHOR = "desired/.published"


def signer_of(keys: KeyRing) -> Callable[[bytes], tuple[Signature, ...]]:
    """Return what signs assignments: all keys of that role whose private halves are here.

    Raises:
        KeyFileError: When it signs: none is here.
    """

    def sign(payload: bytes) -> tuple[Signature, ...]:
        signers = keys.signers(keys.public("assignments"))
        made = [signed_if_there(signer, lambda signer: signer.sign(payload)) for signer in signers]
        found = tuple(Signature(keyid=m.keyid, sig=m.signature) for m in made if m is not None)
        if not found:
            raise KeyFileError(
                "There is no key here that signs assignments.",
                where=str(keys.folder),
                hint="Run the controller where the online keys are.",
            )
        return found

    return sign


@final
class StorageShelf:
    """The documents of devices, `desired/DEVICE.json` in a repository.

    Args:
        storage: The repository's.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def put(self, device: str, document: bytes) -> None:
        """See `publisher.Shelf`."""
        self._storage.replace(f"desired/{device}.json", document)

    def anchor(self) -> int:
        """See `publisher.Shelf`."""
        return int(self._storage.read(_ANCHOR)) if self._storage.exists(_ANCHOR) else 0

    def set_anchor(self, number: int) -> None:
        """See `publisher.Shelf`."""
        self._storage.replace(_ANCHOR, str(number).encode())
