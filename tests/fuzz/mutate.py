"""Changes to inputs that keep their format, so that a fuzzer gets behind the first check of it.

A change of single bytes rarely leaves JSON or protobuf readable. These change a value, a name or a place in
the tree that was read, and write it again.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import onnx
from google.protobuf.json_format import MessageToDict, ParseDict

__all__ = ["Mutate", "mutate_bytes", "mutate_json", "mutate_lines", "mutate_model", "mutate_parts"]

Mutate = Callable[[bytes, random.Random], bytes]
SEPARATOR = b"\n--part--\n"

_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**62, 2**63, -(2**63), 2**64, 10**30, 0.0, -0.0, 0.5,
    1e308, 1e-320, 1e400, -1e400, float("nan"), "", "0", "1", "-1", "*", "a" * 64, "a" * 300, "0" * 64, "..",
    "../x", "/", "/etc/passwd", "a\\b", "\0",
    "\ud800", "é", "☃", "NaN", ">=1", ">=1,<2", "float32", "string", "bfloat16", "int4", [], {}, [[]],
    [0], [0, 0], ["a"], {"": 0}, {"a": {}}, "critical", "x", "y", "w", "relu", "2.0", "1.25.0", "dim",
)  # fmt: skip


_LONG = ("9" * 5000, ">=" + "9" * 5000, "a" * 5000, 10**400)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, insert, remove or repeat some bytes."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 8))))
        elif kind == 3:
            del changed[place : place + rng.choice((1, 1, 2, 4, 16, 64))]
        else:
            start = rng.randrange(len(changed) + 1)
            changed[place:place] = changed[start : start + rng.choice((1, 4, 16, 64))]
    return bytes(changed)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change the tree of a JSON document; of what is none, its bytes."""
    try:
        tree = json.loads(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            tree = _changed(tree, rng)
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)


def mutate_model(data: bytes, rng: random.Random) -> bytes:
    """Change the tree of a serialized ONNX model; of what is none, and three times in four, its bytes."""
    if rng.randrange(4):
        return mutate_bytes(data, rng)
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
        tree = MessageToDict(proto, preserving_proto_field_name=True)
        for _ in range(rng.choice((1, 1, 2, 3))):
            tree = _changed(tree, rng)
        changed: bytes = ParseDict(tree, onnx.ModelProto(), ignore_unknown_fields=True).SerializeToString()
        return changed
    except Exception:  # a value that no field of a model takes
        return mutate_bytes(data, rng)


def mutate_parts(data: bytes, rng: random.Random) -> bytes:
    """Change one of several parts: as JSON what begins as an object, the bytes of the others."""
    parts = data.split(SEPARATOR)
    place = rng.randrange(len(parts))
    change = mutate_json if parts[place][:1] in (b"{", b"[") else mutate_bytes
    parts[place] = change(parts[place], rng)
    return SEPARATOR.join(parts)


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one of several JSON documents, one a line, or the order of the lines."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    if rng.randrange(6):
        lines[place] = mutate_json(lines[place], rng)
    else:
        lines.insert(rng.randrange(len(lines) + 1), lines[place] if rng.randrange(2) else lines.pop(place))
    return rng.choice((b"\n", b"\n", b"\n", b"\n", b"\r", b"\r\n")).join(lines)


def _changed(tree: Any, rng: random.Random) -> Any:
    """Return the tree with one change somewhere in it."""
    places = list(_places(tree))
    if not places:
        return copy.deepcopy(rng.choice(_ODD))
    parent, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(rng.choice(parent)))
    elif kind == 1:
        parent[str(rng.choice(_ODD))] = copy.deepcopy(parent[key])
    elif kind == 2:  # a part of the document in another place
        other, at = rng.choice(places)
        parent[key] = copy.deepcopy(other[at])
    elif kind == 3 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = rng.choice(
            (parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 2, str(parent[key]))
        )
    elif kind == 4 and isinstance(parent[key], str):
        text = parent[key]
        at = rng.randrange(len(text) + 1)
        parent[key] = (
            text[:at]
            + rng.choice(("", "0", "/", "\0", "\ud800", "é", "a" * 70))
            + text[at + rng.randrange(2) :]
        )
    elif kind == 5:
        for _ in range(2000 if rng.randrange(100) == 0 else rng.choice((1, 3, 40))):
            parent[key] = [parent[key]]
    else:
        parent[key] = copy.deepcopy(rng.choice(_ODD if rng.randrange(50) else _LONG))
    return tree


def _places(tree: Any) -> Any:
    """Yield each place of a tree as its parent and the key or index in it."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in list(items):
            yield node, key
            waiting.append(value)
