"""Taking weights out of a serialized model without the `onnx` package, which a device does not have.

Only the protobuf framing is read (https://protobuf.dev/programming-guides/encoding): a message is a row of
fields, each a varint of number and wire type followed by its value. Numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

__all__ = ["without_initializers"]

_GRAPH = 7  # ModelProto.graph
_INITIALIZER = 5  # GraphProto.initializer
_NAME = 8  # TensorProto.name
_BYTES = 2  # the wire type of messages and strings


def without_initializers(model: bytes, names: Set[str]) -> bytes:
    """Return the model without the default values of these inputs, so that they are required.

    Args:
        model: A serialized `ModelProto`.
        names: Initializers of the main graph.
    """
    out = []
    for number, field, body in _fields(memoryview(model)):
        if number == _GRAPH:
            kept = [part for part in _fields(body) if not _is_named(part, names)]
            graph = b"".join(part for _, part, _ in kept)
            out.append(bytes([_GRAPH << 3 | _BYTES]) + _varint(len(graph)) + graph)
        else:
            out.append(bytes(field))
    return b"".join(out)


def _is_named(field: tuple[int, memoryview, memoryview], names: Set[str]) -> bool:
    number, _, body = field
    return number == _INITIALIZER and any(
        inner == _NAME and bytes(name).decode() in names for inner, _, name in _fields(body)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield each field's number, the bytes of all of it, and those of its value if that has a length."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        body = message[at:at]
        match key & 7:
            case 0:
                _, at = _read_varint(message, at)
            case 1:
                at += 8
            case 2:
                size, at = _read_varint(message, at)
                body = message[at : at + size]
                at += size
            case 5:
                at += 4
            case other:
                raise ValueError(f"protobuf has no wire type {other}")
        yield key >> 3, message[start:at], body


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
