"""Deltas from the releases before, for the devices that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.delta import FORMAT, make_delta
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.release import Delta, Release
from edgeinfer.fleet.operator.storage import Storage

__all__ = ["make_deltas"]

# A delta that saves less is not worth its disk and its time.
_WORTH = 0.8
_LEAST_BYTES = 4096
# Making a delta holds both files in memory; beyond this, devices take entire files.
_MOST_BYTES = 1 << 30


def make_deltas(
    storage: Storage, release: Release, before: Sequence[Release], files: Mapping[str, Path]
) -> tuple[tuple[Delta, ...], dict[str, bytes]]:
    """Make deltas between files of the same path in variants of the same name.

    Args:
        storage: Where the files of earlier releases are.
        release: The new release.
        before: Those that devices may come from.
        files: The files of the new release, by digest.

    Returns:
        The deltas, and their contents by digest.
    """
    deltas: dict[tuple[str, str], Delta] = {}
    contents: dict[str, bytes] = {}
    for old in before:
        variants = {variant.name: {blob.path: blob for blob in variant.blobs} for variant in old.variants}
        for variant in release.variants:
            for blob in variant.blobs:
                base = variants.get(variant.name, {}).get(blob.path)
                if base is None or base.digest == blob.digest or (blob.digest, base.digest) in deltas:
                    continue
                if not _LEAST_BYTES <= blob.size <= _MOST_BYTES or base.size > _MOST_BYTES:
                    continue
                made = make_delta(
                    storage.read(f"blobs/{blob_path(base.digest)}"), files[blob.digest].read_bytes()
                )
                if len(made) > _WORTH * blob.size:
                    continue
                digest = sha256(made)
                contents[digest] = made
                deltas[blob.digest, base.digest] = Delta(
                    of=blob.digest, base=base.digest, size=len(made), digest=digest, format=FORMAT
                )
    return tuple(deltas.values()), contents
