"""Which states a power loss may leave on disk: the calls of a real run are replayed on a model of a disk.

The model promises less than file systems do. What was not synced is kept, dropped or torn, each write by
itself, and each change of a folder by itself, in any combination: a renamed file may be there without its
contents, a later name without an earlier one. Only fsync of a file makes its contents certain, and only fsync
of a folder the names in it.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from tests.fleet.device.killing import CALLS

__all__ = ["TRACED", "Disk", "State", "parse", "replay", "write"]

# What is on a disk: by path, the kind (`dir`, `link`, `file`) and the target or the contents.
State: TypeAlias = "dict[str, tuple[str, bytes]]"

TRACED = f"{CALLS},openat,close,lseek,dup,dup2,dup3,fcntl"
_CALL = re.compile(r"^([a-z0-9_]+)\((.*)\) += (-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Node:
    """A file, a folder or a symbolic link: as programs see it, and what of it is certain."""

    def __init__(self, kind: str, target: str = "") -> None:
        self.kind = kind
        self.target = target
        self.data = bytearray()
        self.certain = b""
        self.unsynced: list[tuple[int, bytes | None]] = []  # (offset, bytes), or (size, None) of a truncation
        self.names: dict[str, Node] = {}
        self.certain_names: dict[str, Node] = {}


class Disk:
    """A folder on a disk that may lose its power."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = _read(folder)
        self._changes: list[list[tuple[Node, str, Node | None]]] = []  # of names, not synced
        self._open: dict[int, tuple[Node, int, bool]] = {}  # by descriptor: node, position, appending
        self._paths: dict[int, Path] = {}

    def apply(self, call: str, arguments: list[str], result: int) -> None:
        """Do what a program did."""
        if call == "close":
            self._open.pop(int(arguments[0]), None)
            self._paths.pop(int(arguments[0]), None)
        elif result >= 0:
            handler = getattr(self, f"_{call}", None)
            if handler is not None:
                handler(arguments, result)

    def _openat(self, a: list[str], result: int) -> None:
        path = self._path(a[0], a[1])
        found = self._find(path)
        if found is None and "O_CREAT" in a[2] and self._find(path.parent) is not None:
            found = Node("file")
            self._name(path, found)
        self._paths[result] = path
        if found is not None:
            if "O_TRUNC" in a[2] and found.data:
                self._resize(found, 0)
            self._open[result] = (found, 0, "O_APPEND" in a[2])

    def _lseek(self, a: list[str], result: int) -> None:
        if int(a[0]) in self._open:
            node, _, appending = self._open[int(a[0])]
            self._open[int(a[0])] = (node, result, appending)

    def _write(self, a: list[str], result: int) -> None:
        if int(a[0]) in self._open:
            node, position, appending = self._open[int(a[0])]
            position = len(node.data) if appending else position
            self._put(node, position, _string(a[1])[:result])
            self._open[int(a[0])] = (node, position + result, appending)

    def _pwrite64(self, a: list[str], result: int) -> None:
        if int(a[0]) in self._open:
            self._put(self._open[int(a[0])][0], int(a[3]), _string(a[1])[:result])

    def _copy_file_range(self, a: list[str], result: int) -> None:
        if int(a[2]) in self._open and result:
            source, start = self._open[int(a[0])][0], int(a[1].strip("[]"))
            data = bytes(source.data[start : start + result])
            self._put(self._open[int(a[2])][0], int(a[3].strip("[]")), data)

    def _ftruncate(self, a: list[str], result: int) -> None:
        if int(a[0]) in self._open:
            self._resize(self._open[int(a[0])][0], int(a[1]))

    def _fsync(self, a: list[str], result: int) -> None:
        if int(a[0]) not in self._open:
            return
        node = self._open[int(a[0])][0]
        node.certain, node.unsynced = bytes(node.data), []
        if node.kind == "dir":
            for change in [c for c in self._changes if any(folder is node for folder, _, _ in c)]:
                self._settle(change)

    def _settle(self, change: list[tuple[Node, str, Node | None]]) -> None:
        """Make a change of names certain. What came before it under the same names is over."""
        earlier = self._changes[: self._changes.index(change)]
        for folder, name, child in change:
            _set(folder.certain_names, name, child)
            for other in earlier:
                other[:] = [part for part in other if not (part[0] is folder and part[1] == name)]
        self._changes.remove(change)

    _fdatasync = _fsync

    def _mkdir(self, a: list[str], result: int) -> None:
        self._name(self._path("AT_FDCWD", a[0]), Node("dir"))

    def _symlink(self, a: list[str], result: int) -> None:
        self._name(self._path("AT_FDCWD", a[1]), Node("link", _string(a[0]).decode()))

    def _rename(self, a: list[str], result: int) -> None:
        self._move(self._path("AT_FDCWD", a[0]), self._path("AT_FDCWD", a[1]), exchange=False)

    def _renameat2(self, a: list[str], result: int) -> None:
        self._move(self._path(a[0], a[1]), self._path(a[2], a[3]), exchange="EXCHANGE" in a[4])

    def _unlink(self, a: list[str], result: int) -> None:
        self._name(self._path("AT_FDCWD", a[0]), None)

    _rmdir = _unlink

    def _unlinkat(self, a: list[str], result: int) -> None:
        self._name(self._path(a[0], a[1]), None)

    def _move(self, source: Path, target: Path, *, exchange: bool) -> None:
        node, there = self._find(source), self._find(target)
        before, after = self._find(source.parent), self._find(target.parent)
        if node is None or before is None or after is None:
            return
        change = [(after, target.name, node), (before, source.name, there if exchange else None)]
        self._change(change)

    def _name(self, path: Path, node: Node | None) -> None:
        parent = self._find(path.parent)
        if parent is not None:
            self._change([(parent, path.name, node)])

    def _change(self, change: list[tuple[Node, str, Node | None]]) -> None:
        for folder, name, node in change:
            _set(folder.names, name, node)
        self._changes.append(change)

    @staticmethod
    def _put(node: Node, offset: int, data: bytes) -> None:
        _write_at(node.data, offset, data)
        node.unsynced.append((offset, data))

    @staticmethod
    def _resize(node: Node, size: int) -> None:
        _truncate(node.data, size)
        node.unsynced.append((size, None))

    def _path(self, folder: str, name: str) -> Path:
        path = Path(os.fsdecode(_string(name)))
        base = self.folder if folder == "AT_FDCWD" else self._paths.get(int(folder), self.folder)
        return path if path.is_absolute() else base / path

    def _find(self, path: Path) -> Node | None:
        try:
            parts = path.relative_to(self.folder).parts
        except ValueError:
            return None
        node: Node | None = self.root
        for part in parts:
            node = node.names.get(part) if node is not None else None
        return node

    def after_power_loss(self, rng: random.Random) -> State:
        """Return one of the states that a power loss may leave."""
        kept: dict[int, dict[str, Node]] = {}
        share = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for change in self._changes:
            if rng.random() < share:
                for parent, name, child in change:
                    _set(kept.setdefault(id(parent), dict(parent.certain_names)), name, child)
        return dict(_left(self.root, "", kept, rng))


def write(state: State, folder: Path) -> None:
    """Write a state to a new folder."""
    for name, (kind, data) in state.items():  # a folder comes before what is in it
        path = folder / name
        if kind == "dir":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(os.fsdecode(data))
        else:
            path.write_bytes(data)


def _left(
    node: Node, path: str, kept: dict[int, dict[str, Node]], rng: random.Random
) -> Iterator[tuple[str, tuple[str, bytes]]]:
    if node.kind == "link":
        yield path, ("link", os.fsencode(node.target))
    elif node.kind == "file":
        yield path, ("file", _survived(node, rng))
    else:
        yield path, ("dir", b"")
        for name, child in kept.get(id(node), node.certain_names).items():
            yield from _left(child, f"{path}/{name}" if path else name, kept, rng)


def _survived(node: Node, rng: random.Random) -> bytes:
    """Return the certain contents, with some of what was not synced: all, nothing, or a torn part of each."""
    data = bytearray(node.certain)
    share = rng.choice((0.0, 0.5, 1.0))
    for position, piece in node.unsynced:
        if rng.random() >= share:
            continue
        if piece is None:
            _truncate(data, position)
        elif rng.random() < 0.3:
            cut = rng.randrange(len(piece) + 1)
            # A torn write: the file has its length, and zeros where nothing arrived.
            _write_at(data, position, piece[:cut] + bytes(len(piece) - cut))
        else:
            _write_at(data, position, piece)
    return bytes(data)


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _write_at(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset + len(piece):
        data.extend(bytes(offset + len(piece) - len(data)))
    data[offset : offset + len(piece)] = piece


def _truncate(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))


def _read(path: Path) -> Node:
    """Return what is at a path, all of it certain."""
    if path.is_symlink():
        return Node("link", str(path.readlink()))
    if path.is_file():
        node = Node("file")
        node.certain = path.read_bytes()
        node.data = bytearray(node.certain)
        return node
    node = Node("dir")
    node.names = {entry.name: _read(entry) for entry in path.iterdir()}
    node.certain_names = dict(node.names)
    return node


def _string(text: str) -> bytes:
    match = _STRING.fullmatch(text)
    assert match is not None, text[:80]
    return bytes.fromhex(match[1].replace("\\x", ""))


def parse(log: Path) -> Iterator[tuple[str, list[str], int]]:
    """Yield call, arguments and result of each line that strace wrote with `-xx`."""
    for line in log.read_text().splitlines():
        match = _CALL.match(line)
        if match is not None:
            yield match[1], match[2].split(", "), int(match[3])


def replay(before: Path, at: Path, log: Path) -> Iterator[Disk]:
    """Yield the disk after each call of a run.

    Args:
        before: The folder as it was before the run.
        at: Where it was in the run.
        log: What strace wrote.
    """
    disk = Disk(before)
    disk.folder = at
    yield disk
    for call, arguments, result in parse(log):
        disk.apply(call, arguments, result)
        if call not in ("openat", "close", "lseek", "dup", "dup2", "dup3", "fcntl"):
            yield disk
