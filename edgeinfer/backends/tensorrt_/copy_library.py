"""Copying large inputs by threads without the interpreter's lock: a library of one C file, built on request.

from edgeinfer.backends.tensorrt_.copy_library import build_copy_library
build_copy_library("libedgeinfer_copy.so")  # once, by the C compiler of the device or one like it
edgeinfer.load("model.edge", options={"copy_library": "libedgeinfer_copy.so"})
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path
from typing import Any, final

from edgeinfer.errors import InferenceError, OptionsError

__all__ = ["CopyLibrary", "build_copy_library", "default_helpers"]

_SOURCE = Path(__file__).with_name("copy_team.c")
_VERSION = 1
# Pieces of this size are worth the call that sends each of them.
_PIECE_LEAST_BYTES = 128 << 10
_PIECES_A_THREAD = 6
_THREADS_MOST = 8
# Whether pieces are written past the caches, where the copy to the device would have to fetch them from.
_PAST_CACHES = 1
# So long helpers look for the next copy: the gap between two requests of a small network.
_SPIN_NS = 2_000_000


def build_copy_library(out: str | os.PathLike[str], *, compiler: str = "cc") -> Path:
    """Compile the library.

    Args:
        out: The file to write.
        compiler: A C11 compiler for the device.

    Returns:
        The file.

    Raises:
        OptionsError: There is no such compiler, or it fails.
    """
    command = [compiler, "-O3", "-shared", "-fPIC", "-pthread", "-o", os.fspath(out), str(_SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (the caller's compiler)
    except (OSError, subprocess.CalledProcessError) as error:
        raise OptionsError(
            "The library that copies cannot be built.",
            where=" ".join(command),
            found=getattr(error, "stderr", "") or str(error),
            hint="Give another compiler, or build the file by hand where there is one.",
        ) from error
    return Path(out)


def default_helpers() -> int:
    """Return how many threads help a caller: half of the process's cores, seven at most."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(_THREADS_MOST, here // 2) - 1)


@final
class CopyLibrary:
    """A team of threads of the library. Any thread may copy; a second one at a time is not helped.

    Args:
        path: The library.
        helpers: How many threads help a caller.

    Raises:
        OptionsError: It is not the library, or the system has no room for its threads.
    """

    def __init__(self, path: str, helpers: int) -> None:
        try:
            self._library = ctypes.CDLL(str(Path(path).resolve()))
            version = self._library.edgeinfer_copy_version()
        except (OSError, AttributeError) as error:
            raise _not_the_library(path, str(error)) from error
        if version != _VERSION:
            raise _not_the_library(path, f"version {version}")
        self._new = self._library.edgeinfer_copy_new
        self._new.argtypes, self._new.restype = (ctypes.c_int, ctypes.c_int64, ctypes.c_int), ctypes.c_void_p
        self._free = self._library.edgeinfer_copy_free
        self._free.argtypes, self._free.restype = (ctypes.c_void_p,), None
        self._run = self._library.edgeinfer_copy_run
        word, size = ctypes.c_void_p, ctypes.c_size_t
        self._run.argtypes = (word, word, word, size, size, word, ctypes.c_uint64, word)
        self._send = driver_copy()
        self._threads, self._process = helpers + 1, os.getpid()
        self._team = self._new(helpers, _SPIN_NS, _PAST_CACHES)
        if not self._team:
            raise OptionsError(
                "The system has no room for the threads that copy.",
                where="option copy_threads",
                found=f"{helpers} threads",
            )

    def copy(self, source: int, host: int, device: int, size: int, stream: Any) -> None:
        """Copy an array to page-locked memory and from there to the device; enqueued when this returns.

        Args:
            source: The array's address. It may be changed when this has returned.
            host: Page-locked memory of that size.
            device: Memory of the device that is current.
            size: Its size in bytes.
            stream: The stream of the copies to the device.

        Raises:
            InferenceError: The driver refuses a copy.
        """
        piece = max(_PIECE_LEAST_BYTES, size // (self._threads * _PIECES_A_THREAD))
        piece = -(-piece // mmap.PAGESIZE) * mmap.PAGESIZE
        status = self._run(self._team, host, source, size, piece, self._send, device, int(stream))
        if status:
            raise InferenceError(
                "The driver refuses a copy to the device.",
                where="cuMemcpyHtoDAsync",
                facts={"cuda_error": status},
            )

    def close(self) -> None:
        """End the threads; in a forked child, which has none of them, nothing is to be done."""
        team, self._team = self._team, None
        if team and os.getpid() == self._process:
            self._free(team)


def driver_copy() -> int:
    """Return the address of the driver's copy from the host to the device."""
    try:
        return int(ctypes.cast(ctypes.CDLL("libcuda.so.1").cuMemcpyHtoDAsync_v2, ctypes.c_void_p).value or 0)
    except (OSError, AttributeError) as error:
        raise OptionsError(
            "NVIDIA's driver has not what the library calls.", where="libcuda.so.1", found=str(error)
        ) from error


def _not_the_library(path: str, found: str) -> OptionsError:
    return OptionsError(
        "That is not the library that copies.",
        where="option copy_library",
        expected=f"version {_VERSION} of it",
        found=f"{path}: {found}",
        hint="Build it by edgeinfer.backends.tensorrt_.copy_library.build_copy_library.",
    )
