"""Atomic writing of folders, and reading of files that must not be links."""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["open_regular", "write_file", "write_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; refuse symbolic links."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb")


def write_file(path: Path, content: bytes) -> None:
    """Make the file hold exactly `content`, or leave it as it was.

    Raises:
        OSError: Of the operation that failed; the draft is removed.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def write_folder(folder: Path, contents: Mapping[str, bytes | Path]) -> None:
    """Make `folder` hold exactly `contents`, or leave it as it was.

    Args:
        folder: The directory to make or replace.
        contents: Bytes, or the path of a file to copy, by plain file name.

    Raises:
        OSError: Of the operation that failed; the draft is removed.
    """
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        for name, content in contents.items():
            with (draft / name).open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
        _fsync_folder(draft)
        _swap_in(draft, folder)
        _fsync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap_in(draft: Path, folder: Path) -> None:
    """Put `draft` at `folder`; what was there ends at `draft`."""
    if not folder.exists():
        draft.rename(folder)
        return
    if _exchange(draft, folder):
        return
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as spare:
        aside = Path(spare) / folder.name
        folder.rename(aside)
        try:
            draft.rename(folder)
        except OSError:
            aside.rename(folder)
            raise


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step (Linux renameat2); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    code = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return bool(code == 0)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
