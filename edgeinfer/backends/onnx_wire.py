"""The external tensors of a serialized ONNX model, found and moved without the onnx package.

A runtime that is given a model resolves the files that it names: relative to the model's folder, or, when it
was given bytes, to the current folder of the process. So an artifact's model is looked through before, in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding/), and strictly: what a lenient
parser would understand in another way is refused. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from typing import NamedTuple, TypeAlias

import attrs

__all__ = [
    "ExternalTensor",
    "MalformedModelError",
    "look_through",
    "move_external",
    "without_initializers",
]

# Which fields of a message hold which messages, on the way from a model to its tensors.
_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# Those of them that occur once; parsers merge or drop what comes after.
_SINGULAR = {
    "model": {7},
    "training": {1, 2},
    "attribute": {5, 6, 22},
    "sparse": {1, 2},
}
_MODEL_WIRE_TYPES = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE = 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_TENSOR_NAME, _TENSOR_EXTERNAL = 8, 13
_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5
# protobuf itself allows messages in messages to this depth.
_MAX_DEPTH = 100
# Containers of other formats that a runtime would recognize in the same bytes, by bytes 4 to 8.
_OTHER_FORMATS = (b"ORTM", b"TFL3")

_DIGITS = re.compile(rb"[0-9]{1,18}\Z")

_Edit: TypeAlias = Callable[[str, memoryview], "bytes | None"]


class MalformedModelError(ValueError):
    """The bytes are no ONNX model."""


@attrs.frozen(kw_only=True)
class ExternalTensor:
    """A tensor whose data is in a file.

    Attributes:
        name: The tensor's name.
        location: The file, as the model names it.
        offset: Where the data begins, in bytes.
        length: Its size in bytes, or None when the model does not say.
    """

    name: str
    location: str
    offset: int
    length: int | None


def look_through(model: bytes) -> tuple[list[ExternalTensor], list[str]]:
    """Return what makes a runtime open files, wherever in the model it is.

    Returns:
        The external tensors, and the names of the nodes that make an execution provider read a file of its
        own: EPContext, not embedded.

    Raises:
        MalformedModelError: The bytes are no ONNX model.
    """
    _check_format(model)
    tensors: list[ExternalTensor] = []
    nodes: list[str] = []

    def look(kind: str, data: memoryview) -> bytes | None:
        tensor = _external(data) if kind == "tensor" else None
        if tensor is not None:
            tensors.append(tensor)
        if kind == "node" and _is_external_node(data):
            nodes.append(b"".join(_values(data, _NODE_NAME)).decode(errors="replace") or "EPContext")
        return None

    _rewrite(memoryview(model), "model", look)
    return tensors, nodes


def move_external(model: bytes, place: Callable[[ExternalTensor], tuple[str, int, int]]) -> bytes:
    """Return the model with its external tensors elsewhere.

    Args:
        model: A model that `look_through` has accepted.
        place: Gives the new location, offset and length of a tensor.
    """

    def move(kind: str, data: memoryview) -> bytes | None:
        tensor = _external(data) if kind == "tensor" else None
        if tensor is None:
            return None
        location, offset, length = place(tensor)
        rest = [data[f.start : f.end] for f in _fields(data) if f.number != _TENSOR_EXTERNAL]
        entries = (("location", location), ("offset", str(offset)), ("length", str(length)))
        return b"".join([*rest, *(_message(_TENSOR_EXTERNAL, _entry(*entry)) for entry in entries)])

    return _rewrite(memoryview(model), "model", move) or model


def _is_external_node(node: memoryview) -> bool:
    if b"EPContext" not in _values(node, _NODE_OP_TYPE):
        return False
    return any(_is_not_embedded(memoryview(value)) for value in _values(node, _NODE_ATTRIBUTE))


def _is_not_embedded(attribute: memoryview) -> bool:
    modes = [
        _varint(attribute, field.value)[0]
        for field in _fields(attribute)
        if (field.number, field.wire) == (_ATTRIBUTE_INT, _VARINT)
    ]
    return b"embed_mode" in _values(attribute, _ATTRIBUTE_NAME) and modes[-1:] != [1]


def _values(data: memoryview, number: int) -> list[bytes]:
    """Return the contents of a field of bytes, once for each time that it occurs."""
    return [bytes(data[f.value : f.end]) for f in _fields(data) if (f.number, f.wire) == (number, _BYTES)]


class _Field(NamedTuple):
    number: int
    wire: int
    start: int
    value: int
    end: int


def _fields(data: memoryview) -> Iterator[_Field]:
    """Yield the fields of a message with the places of their key, value and end."""
    position = 0
    while position < len(data):
        start = position
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        value = position
        if wire == _VARINT:
            _, position = _varint(data, position)
        elif wire == _BYTES:
            size, value = _varint(data, position)
            position = value + size
        elif wire in (_I64, _I32):
            position += 8 if wire == _I64 else 4
        else:
            raise MalformedModelError(f"wire type {wire} at byte {start}")
        # Keys have 32 bits; a parser that cuts longer ones off would see another field.
        if number == 0 or key >= 1 << 32 or position > len(data):
            raise MalformedModelError(f"a field that is none at byte {start}")
        yield _Field(number, wire, start, value, position)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise MalformedModelError(f"a number that does not end at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _check_format(model: bytes) -> None:
    if model[4:8] in _OTHER_FORMATS:
        raise MalformedModelError(f"the format {model[4:8].decode()}")
    graphs = 0
    for field in _fields(memoryview(model)):
        graphs += field.number == _MODEL_GRAPH
        if _MODEL_WIRE_TYPES.get(field.number, field.wire) != field.wire:
            raise MalformedModelError(f"field {field.number} of a wrong type at byte {field.start}")
    if graphs != 1:
        raise MalformedModelError("no graph, or several")


def _rewrite(data: memoryview, kind: str, edit: _Edit, depth: int = 0) -> bytes | None:
    """Let `edit` replace messages; return the new bytes, or None where it replaced nothing."""
    if depth > _MAX_DEPTH:
        raise MalformedModelError(f"messages within more than {_MAX_DEPTH} others")
    edited = edit(kind, data)
    if edited is not None or kind not in _CHILDREN:
        return edited
    pieces: list[bytes | memoryview] = []
    done = 0
    seen: set[int] = set()
    for field in _fields(data):
        child = _CHILDREN[kind].get(field.number) if field.wire == _BYTES else None
        if child is None:
            continue
        if field.number in seen and field.number in _SINGULAR.get(kind, ()):
            raise MalformedModelError(f"a second field {field.number} in one {kind}")
        seen.add(field.number)
        new = _rewrite(data[field.value : field.end], child, edit, depth + 1)
        if new is not None:
            pieces += [data[done : field.start], _message(field.number, new)]
            done = field.end
    return b"".join([*pieces, data[done:]]) if pieces else None


def _external(tensor: memoryview) -> ExternalTensor | None:
    """Return where a tensor's data is, or None when it is in the model."""
    name = ""
    entries: dict[bytes, bytes] = {}
    for field in _fields(tensor):
        content = tensor[field.value : field.end]
        if field.number == _TENSOR_NAME and field.wire == _BYTES:
            name = bytes(content).decode(errors="replace")
        elif field.number == _TENSOR_EXTERNAL and field.wire == _BYTES:
            pair = {f.number: bytes(content[f.value : f.end]) for f in _fields(content) if f.wire == _BYTES}
            if pair.get(1, b"") in entries:
                raise MalformedModelError(f"tensor {name!r} says twice where it is")
            entries[pair.get(1, b"")] = pair.get(2, b"")
    if not entries:
        return None
    try:
        location = entries[b"location"].decode()
    except (KeyError, ValueError) as error:
        raise MalformedModelError(f"tensor {name!r} does not say in which file it is") from error
    offset, length = (_count(name, entries.get(key)) for key in (b"offset", b"length"))
    return ExternalTensor(name=name, location=location, offset=offset or 0, length=length)


def _count(name: str, text: bytes | None) -> int | None:
    if not text:
        return None
    if not _DIGITS.match(text):
        raise MalformedModelError(f"tensor {name!r} has the offset or length {text!r}")
    return int(text)


def _entry(key: str, value: str) -> bytes:
    return _message(1, key.encode()) + _message(2, value.encode())


def _message(number: int, content: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(content)) + content


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def without_initializers(model: bytes, names: Set[str]) -> bytes:
    """Return the model without the default values of these inputs, so that they are required.

    Args:
        model: A serialized `ModelProto`, which was looked through.
        names: Initializers of the main graph.

    Raises:
        MalformedModelError: It is none.
    """
    data = memoryview(model)
    pieces: list[bytes | memoryview] = []
    for field in _fields(data):
        graph = data[field.value : field.end]
        if field.number != _MODEL_GRAPH:
            pieces.append(data[field.start : field.end])
            continue
        kept = b"".join(
            graph[f.start : f.end] for f in _fields(graph) if not _is_initializer(graph, f, names)
        )
        pieces.append(_message(_MODEL_GRAPH, kept))
    return b"".join(pieces)


def _is_initializer(graph: memoryview, field: _Field, names: Set[str]) -> bool:
    if field.number != _GRAPH_INITIALIZER or field.wire != _BYTES:
        return False
    found = _values(graph[field.value : field.end], _TENSOR_NAME)
    return any(name.decode(errors="replace") in names for name in found)
