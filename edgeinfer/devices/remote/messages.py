"""Messages between this machine and a device: a JSON header, and blobs of bytes after it.

    MAGIC | length of the header, 8 bytes big-endian | header | blob | blob | …

What a login script prints comes before the magic line and is skipped. Blobs are streamed, so that a message
needs no more memory than its header. There are no pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias, final

import attrs

from edgeinfer.errors import RemoteConnectionError, RemoteError
from edgeinfer.plain_json import parse_json

__all__ = ["PROTOCOL", "Blob", "Message", "read_message", "write_message"]

PROTOCOL = 1
_MAGIC = b"\nedgeinfer-message-1\n"
_MAX_HEADER = 16 << 20
_MAX_NOISE = 1 << 20
_CHUNK = 1 << 20
_BROKE = "The connection broke in the middle of a message."

Blob: TypeAlias = "bytes | Path"


@final
@attrs.define
class Message:
    """A message whose blobs are still to be read, in their order.

    Attributes:
        header: What it says.
        sizes: The size of each blob in bytes, by name.
    """

    header: dict[str, Any]
    sizes: dict[str, int]
    _stream: IO[bytes]

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read the next blob, which must be the one of that name, piece by piece."""
        left = self.sizes[name]
        while left:
            chunk = self._stream.read(min(_CHUNK, left))
            if not chunk:
                raise RemoteConnectionError(
                    "The connection broke in the middle of a message.",
                    where=name,
                    found=f"{left} bytes short",
                )
            left -= len(chunk)
            yield chunk

    def read(self, name: str) -> bytes:
        """Read the next blob into memory."""
        return b"".join(self.chunks(name))


def write_message(
    stream: IO[bytes], header: Mapping[str, Any], blobs: Mapping[str, Blob] | None = None
) -> None:
    """Write a message. Files are streamed."""
    sizes = {name: _size(blob) for name, blob in (blobs or {}).items()}
    text = json.dumps({**header, "protocol": PROTOCOL, "blobs": sizes}).encode()
    stream.write(_MAGIC + len(text).to_bytes(8, "big") + text)
    for name, blob in (blobs or {}).items():
        written = 0
        for chunk in _pieces(blob):
            stream.write(chunk)
            written += len(chunk)
        if written != sizes[name]:
            raise RemoteError("A file changed while it was sent.", where=name)
    stream.flush()


def _size(blob: Blob) -> int:
    return len(blob) if isinstance(blob, bytes) else blob.stat().st_size


def _pieces(blob: Blob) -> Iterable[bytes]:
    if isinstance(blob, bytes):
        yield blob
        return
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def read_message(stream: IO[bytes]) -> Message | None:
    """Read the next message up to its blobs; None at the end of the stream.

    Raises:
        RemoteConnectionError: It ends in the middle of a message.
        RemoteError: What comes is no message, or one of another version.
    """
    if not _skip_to_magic(stream):
        return None
    size = int.from_bytes(_exactly(stream, 8), "big")
    if size > _MAX_HEADER:
        raise RemoteError("That is no message of edgeinfer.", found=f"a header of {size} bytes")
    try:
        header = parse_json(_exactly(stream, size))
        version, sizes = header.pop("protocol"), header.pop("blobs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RemoteError("That is no message of edgeinfer.", found=str(error)) from error
    if version != PROTOCOL:
        raise RemoteError(
            "The other side speaks another version.",
            expected=PROTOCOL,
            found=version,
            hint="Install the same version of edgeinfer on both.",
        )
    return Message(header, {str(name): int(size) for name, size in sizes.items()}, stream)


def _skip_to_magic(stream: IO[bytes]) -> bool:
    window = b""
    for _ in range(_MAX_NOISE):
        byte = stream.read(1)
        if not byte:
            return False
        window = (window + byte)[-len(_MAGIC) :]
        if window == _MAGIC:
            return True
    raise RemoteError("The other side says something else than edgeinfer would.", found=repr(window))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise RemoteConnectionError(_BROKE)
        data += more
    return data
