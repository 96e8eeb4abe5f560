"""Private keys in PKCS#8 files, encrypted with a passphrase; and keys that turn out not to be there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from edgeinfer.errors import MissingPackageError
from edgeinfer.fleet.errors import KeyFileError

__all__ = ["is_encrypted", "need_cryptography", "pem_of", "public_key_of", "signed_if_there", "signer_of"]

T = TypeVar("T")
_LOG = logging.getLogger("edgeinfer.fleet")


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key is encrypted."""
    return b"ENCRYPTED" in pem.partition(b"\n")[0]


def signer_of(pem: bytes, public: Key, secret: str | None) -> Signer:
    """Return what signs with a private key.

    Raises:
        KeyFileError: The passphrase is wrong, or it is another key.
    """
    need_cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    encrypted = is_encrypted(pem)
    try:
        private: Any = load_pem_private_key(pem, secret.encode() if secret else None)
        assert isinstance(public, SSlibKey)
        return CryptoSigner(private, public)
    except Exception as error:  # of OpenSSL: a wrong passphrase has several faces
        raise KeyFileError(
            "A key cannot be decrypted." if encrypted else "A key cannot be read.",
            where=f"key {public.keyid[:12]}",
            expected="the passphrase that it was encrypted with" if encrypted else "an Ed25519 key in PKCS#8",
            found=f"{type(error).__name__}: {error}" if secret or not encrypted else "no passphrase",
        ) from error


def pem_of(signer: CryptoSigner, secret: str | None) -> bytes:
    """Return the private key as a file, encrypted if there is a passphrase."""
    if secret is None:
        return signer.private_bytes
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    private = load_pem_private_key(signer.private_bytes, None)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(secret.encode()))


def public_key_of(pem: bytes) -> Key:
    """Return the public key of a PEM file.

    Raises:
        KeyFileError: It is none.
    """
    need_cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key: Any = load_pem_public_key(pem)
        return SSlibKey.from_crypto(key)
    except (ValueError, TypeError) as error:
        raise KeyFileError(f"That is no public key: {error}.", expected="a PEM file") from error


def signed_if_there(signer: Signer, sign: Callable[[Signer], T]) -> T | None:
    """Sign, or tell in a warning why a key cannot: it then counts as one that is not here.

    Whether an HSM or a key service is there shows when it is to sign.
    """
    try:
        return sign(signer)
    except Exception as error:  # each service has its own
        cause = error.__cause__ or error
        keyid = signer.public_key.keyid[:12]
        _LOG.warning("The key %s cannot sign: %s: %s.", keyid, type(cause).__name__, cause)
        return None


def need_cryptography() -> None:
    """Raise MissingPackageError where the package cryptography is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Signing needs the package cryptography, which is not installed.",
            hint='pip install "edgeinfer[fleet]"',
            facts={"package": "cryptography"},
        ) from error
