"""Feeds in one `.npz` without pickles, for the way to a device."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.feeds.feeds import Feed, feed_nbytes

__all__ = ["pack_feeds", "unpack_feeds"]

_MAX_BYTES = 256 << 20


def pack_feeds(feeds: Iterable[Feed]) -> tuple[bytes, tuple[str, ...]]:
    """Return the file, and notes: of many feeds only the first 256 MiB are taken."""
    arrays: dict[str, np.ndarray] = {}
    size = 0
    notes: tuple[str, ...] = ()
    for count, feed in enumerate(feeds):
        size += feed_nbytes(feed)
        if count and size > _MAX_BYTES:
            notes = (f"the first {count} feeds only",)
            break
        for name, value in feed.items():
            array = np.asarray(value)
            arrays[f"{count}:{name}"] = array.astype(str) if array.dtype == object else array
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue(), notes


def unpack_feeds(data: bytes, signature: Signature) -> list[dict[str, np.ndarray]]:
    """Read what `pack_feeds` made; dtypes that the file does not have are the signature's."""
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    feeds: dict[int, dict[str, np.ndarray]] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        for key in archive.files:
            index, _, name = key.partition(":")
            array = archive[key]
            if array.dtype.kind == "U":
                array = array.astype(object)
            elif array.dtype.kind == "V" and name in dtypes:
                array = array.view(dtypes[name])
            feeds.setdefault(int(index), {})[name] = array
    return [feeds[index] for index in sorted(feeds)]
