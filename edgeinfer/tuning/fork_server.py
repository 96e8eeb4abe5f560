"""Starts children by forking a process that has imported everything (`fork_serving`)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, final

__all__ = ["ForkServer", "Process", "can_fork", "fork_server", "python_path"]

_SERVING = "edgeinfer.tuning.fork_serving"
# What the children of a tuning run import; no runtime is among it.
_MODULES = ("edgeinfer.tuning.child", "edgeinfer.tuning.making", "edgeinfer.tuning.stopwatch")
_START_S = 180.0  # to import, on a small device
_END_S = 60.0


class Process(Protocol):
    """A started process: what is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its number, and that of its process group."""
        ...

    @property
    def stdin(self) -> IO[bytes] | None:
        """What it reads."""
        ...

    @property
    def stdout(self) -> IO[bytes] | None:
        """What it writes."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, negative for a signal. Raises `subprocess.TimeoutExpired`."""
        ...


def can_fork() -> bool:
    """Whether children are forked on this system. Elsewhere libraries do not survive a fork."""
    return sys.platform == "linux"


def python_path() -> dict[str, str]:
    """Return the environment in which a child finds the same modules."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}


@final
class ForkServer:
    """A process to fork from; a context manager.

    Args:
        log: The file that takes what it prints.
        modules: What it imports.
    """

    def __init__(self, log: Path, modules: Sequence[str] = _MODULES) -> None:
        self._log = log
        self._modules = modules
        self._open()

    def _open(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 (this interpreter, and a module of ours)
                [sys.executable, "-m", _SERVING, str(theirs.fileno()), *self._modules],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=python_path(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The number of the server's process."""
        return self._process.pid

    def start(self, module: str, log: Path) -> Process:
        """Return a new child that runs `main` of a module, in a process group of its own.

        Args:
            module: Its name.
            log: The file that takes its stderr.

        Raises:
            OSError: The server does not answer; or it has ended, and so has another one.
        """
        try:
            return self._start(module, log)
        except ConnectionError:
            self.close()  # it has ended, perhaps where memory ran out
            self._open()
            return self._start(module, log)

    def _start(self, module: str, log: Path) -> Process:
        read_in, write_in = os.pipe()
        read_out, write_out = os.pipe()
        try:
            with log.open("wb") as errors:
                answer = self._ask({"module": module}, (read_in, write_out, errors.fileno()), _START_S)
        except BaseException:
            os.close(write_in)
            os.close(read_out)
            raise
        finally:
            os.close(read_in)
            os.close(write_out)
        return _Forked(self, answer["pid"], os.fdopen(write_in, "wb"), os.fdopen(read_out, "rb"))

    def end_of(self, pid: int, timeout_s: float) -> int | None:
        """Return the exit code of a child; None if it does not end in time. Raises OSError as `start`."""
        code: int | None = self._ask({"wait": pid, "timeout_s": timeout_s}, (), timeout_s + _END_S)["code"]
        return code

    def close(self) -> None:
        """End the server. Children that still run end when their stdin is closed."""
        self._line.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: Mapping[str, Any], streams: Sequence[int], timeout_s: float) -> dict[str, Any]:
        self._line.settimeout(timeout_s)
        data = json.dumps(request).encode()
        socket.send_fds(self._line, [data], list(streams)) if streams else self._line.send(data)
        answer = self._line.recv(1 << 16)
        if not answer:
            raise ConnectionResetError("the process that children are forked from has ended")
        found: dict[str, Any] = json.loads(answer)
        return found


@final
class _Forked:
    """A child of the server; see `Process`."""

    def __init__(self, server: ForkServer, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self._server = server
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """See `Process`."""
        if self._code is None:
            limit = _END_S if timeout is None else timeout
            self._code = self._server.end_of(self.pid, limit)
        if self._code is None:
            raise subprocess.TimeoutExpired("a forked child", limit)
        return self._code


_OPEN: ContextVar[ForkServer | None] = ContextVar("_OPEN", default=None)


@contextlib.contextmanager
def fork_server(folder: Path) -> Iterator[ForkServer | None]:
    """Give the server that is open around this, or else a new one; None where children are not forked.

    Args:
        folder: Where a new one writes its log.
    """
    around = _OPEN.get()
    if around is not None or not can_fork():
        yield around
        return
    with ForkServer(folder / "fork_server.log") as server:
        token = _OPEN.set(server)
        try:
            yield server
        finally:
            _OPEN.reset(token)
