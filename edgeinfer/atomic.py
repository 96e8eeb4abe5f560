"""Atomic writing of files and folders, and reading of files that must not be links.

What is written is a *draft* beside its destination first, and renamed when it is complete and synced. Its
writer holds the draft locked (`flock`), and the system frees the lock however the process ends. So a draft
whose lock is free was left by a process that was killed, and the next writer of the same name removes it.

A folder is read through one descriptor (`FolderReader`): a folder that is put in its place meanwhile is never
mixed with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import functools
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from mmap import mmap
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias, final

__all__ = [
    "Content",
    "FolderReader",
    "draft_folder",
    "open_regular",
    "scratch_folder",
    "write_file",
    "write_folder",
]

# The contents of a file: in memory, mapped from a file that was checked, or the path of a file.
Content: TypeAlias = "bytes | mmap | Path"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_REST = re.compile(r"[0-9a-f]{12}\.draft\Z")
_ATTEMPTS = 10


def open_regular(
    path: str | os.PathLike[str], *, folder: int | None = None, alone: bool = False
) -> io.BufferedReader:
    """Open a file for reading; refuse symbolic links, and what is no regular file (a pipe would block).

    Args:
        path: The file.
        folder: The descriptor of the folder that `path` is relative to.
        alone: Also refuse a file that has a second name (a hard link), which may be anywhere.

    Raises:
        OSError: It cannot be opened, or is refused.
    """
    descriptor = os.open(path, _READ, dir_fd=folder)
    status = os.fstat(descriptor)
    refused = None
    if not stat.S_ISREG(status.st_mode):
        refused = "Not a regular file"
    elif alone and status.st_nlink != 1:
        refused = f"A file with {status.st_nlink} names (hard links)"
    if refused is not None:
        os.close(descriptor)
        raise OSError(errno.EINVAL, refused, os.fspath(path))
    return os.fdopen(descriptor, "rb")


@final
class FolderReader:
    """Reads the files of one folder through its descriptor; a context manager.

    Raises:
        OSError: It cannot be opened, or is not a folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def open(self, name: str) -> io.BufferedReader:
        """Open one of its files: a regular one with one name, no link. Raises OSError as `open_regular`."""
        return open_regular(name, folder=self._descriptor, alone=True)

    def replaced(self) -> bool:
        """Whether another folder, or none, is at the path by now, so that what was read may be half of it."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self._folder.stat())
        except OSError:
            return True

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def write_file(
    path: Path, content: bytes | Callable[[BinaryIO], object], *, drafts: Path | None = None
) -> None:
    """Make the file hold exactly `content`, or leave it as it was.

    A symbolic link stays one: what it points to is replaced. What is there and is no regular file (a pipe, a
    device) is written to as it is.

    Args:
        path: The file.
        content: Its bytes, or a function that writes them to the open file that it is given.
        drafts: The folder of the draft, on the same file system. None: the file's own, which takes long where
            that has very many files, for drafts that killed processes left are looked for among them.

    Raises:
        OSError: Of the operation that failed; the draft is removed.
    """
    if path.is_symlink():
        path, drafts = Path(os.path.realpath(path)), None
    if path.exists() and not path.is_file():
        buffer = io.BytesIO()  # a pipe has no positions, which formats such as zip ask for
        _fill(buffer, content)
        with path.open("wb") as file:
            file.write(buffer.getbuffer())
        return
    drafts = drafts or path.parent
    reap(drafts, path.name)
    draft, descriptor = _locked_draft(drafts, path.name, _create_file)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
            _fill(file, content)
            file.flush()
            os.fsync(descriptor)
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def write_folder(folder: Path, contents: Mapping[str, Content]) -> None:
    """Make `folder` hold exactly `contents`, or leave it as it was.

    Args:
        folder: The directory to make or replace.
        contents: Bytes, or the path of a file to copy, by plain file name.

    Raises:
        OSError: Of the operation that failed; the draft is removed.
    """
    if folder.is_symlink():  # what it points to is replaced, not the link
        folder = Path(os.path.realpath(folder))
    from shutil import copyfileobj  # as below: a device that only reads pays for no import

    with draft_folder(folder.parent, folder.name) as draft:
        draft.chmod(0o755)
        for name, content in contents.items():
            with (draft / name).open("wb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        copyfileobj(source, file, 1 << 20)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _fsync_folder(draft)
        _swap_in(draft, folder)
        _fsync_folder(folder.parent)


@contextlib.contextmanager
def draft_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a locked draft of the folder or file `name`, and remove what is at its path in the end.

    Drafts of that name which killed processes left are removed before.

    Raises:
        OSError: It cannot be made.
    """
    reap(parent, name)
    draft, descriptor = _locked_draft(parent, name, _create_folder)
    try:
        yield draft
    finally:
        _remove_tree(draft)
        os.close(descriptor)


def scratch_folder() -> Path:
    """Make a folder for files that are too large for memory; it is removed when this process ends.

    It is made as a draft in the system's temporary folder, so that what killed processes left there goes.

    Raises:
        OSError: It cannot be made.
    """
    from tempfile import gettempdir

    parent = Path(gettempdir())
    reap(parent, "edgeinfer")
    # The descriptor stays open, and with it the lock.
    folder, _ = _locked_draft(parent, "edgeinfer", _create_folder)
    atexit.register(_remove_own, folder, os.getpid())
    return folder


def _remove_tree(folder: str | Path) -> None:
    from shutil import rmtree

    rmtree(folder, ignore_errors=True)


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child that ends leaves its parent's files alone
        _remove_tree(folder)


def reap(parent: Path, name: str) -> None:
    """Remove the drafts of `name` whose writers are gone. What cannot be locked or removed is left."""
    prefix = f".{name}."
    try:
        found = [
            entry
            for entry in os.scandir(parent)
            if entry.name.startswith(prefix) and _REST.match(entry.name, len(prefix))
        ]
    except OSError:
        return  # making the draft will say why
    for entry in found:
        with contextlib.suppress(OSError):
            descriptor = os.open(entry.path, _READ)
            try:
                if os.fstat(descriptor).st_uid != os.geteuid():
                    continue
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    _remove_tree(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 (a path of scandir)
            finally:
                os.close(descriptor)


def _locked_draft(parent: Path, name: str, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Make a draft and lock it. Where the file system has no locks it stays unlocked, and is never reaped."""
    for _ in range(_ATTEMPTS):
        draft = parent / f".{name}.{os.urandom(6).hex()}.draft"
        try:
            descriptor = create(draft)
        except FileNotFoundError as error:
            if not parent.is_dir():
                raise _renamed(error, parent / name) from None
            continue  # another process took it for an abandoned one
        except OSError as error:
            raise _renamed(error, parent / name) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # the same
        except OSError:
            return draft, descriptor
        else:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), draft.lstat()):
                    return draft, descriptor
        os.close(descriptor)
    raise OSError(errno.EBUSY, "Drafts are removed as soon as they are made", str(parent))


def _renamed(error: OSError, path: Path) -> OSError:
    """Return the error with the name that the caller knows instead of the draft's."""
    return type(error)(error.errno, error.strerror, str(path))


def _create_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY)


def _create_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _fill(file: BinaryIO, content: bytes | Callable[[BinaryIO], object]) -> None:
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def _swap_in(draft: Path, folder: Path) -> None:
    """Put `draft` at `folder`; what was there ends at `draft`."""
    if not folder.exists():
        try:
            draft.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
            # Another process was first; what it wrote is replaced.
    if _exchange(draft, folder):
        return
    with draft_folder(folder.parent, f"{folder.name}.old") as spare:
        aside = spare / folder.name
        folder.rename(aside)
        try:
            draft.rename(folder)
        except OSError:
            aside.rename(folder)
            raise


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step (Linux renameat2); False where the system cannot."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    code = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return bool(code == 0)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
