"""One exchange of messages with a device: start the client, send, receive, within a deadline."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar, final
from urllib.parse import urlsplit

import attrs

from edgeinfer import errors
from edgeinfer.devices.remote.messages import Blob, Message, read_message, write_message
from edgeinfer.errors import OptionsError, RemoteConnectionError, RemoteError, RemoteTimeoutError

__all__ = ["Address", "error_from", "exchange"]

T = TypeVar("T")
_WORKER = "edgeinfer.devices.remote.worker"
_SSH_FAILED = 255  # ssh(1): the exit status when an error occurred in ssh itself
_CONNECT_S = 15
_ALIVE_S = 5  # asked this often whether the other side is there; three silences end the connection
_STDERR_BYTES = 8192


def _plain(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    # What begins with a dash would be an option of ssh.
    if not re.fullmatch(r"([A-Za-z0-9_.][A-Za-z0-9_.-]*@)?[A-Za-z0-9_.:%\[][A-Za-z0-9_.:%\]-]*", value):
        raise OptionsError(
            f"That is no {attribute.name} to connect to.",
            expected="ssh://user@host[:port]",
            found=repr(value),
        )


@final
@attrs.frozen(kw_only=True)
class Address:
    """Where a device is, and how it is reached.

    Attributes:
        host: `host` or `user@host`.
        port: The port, or None for the client's default.
        python: The Python of the device-only install there.
        config: A configuration file of the client (`ssh -F`), or None for the user's own.
        folder: Where copies are kept there; empty for its cache folder.
    """

    host: str = attrs.field(validator=_plain)
    port: int | None = None
    python: str = "python3"
    config: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, url: str, **more: Any) -> Address:
        """Read `ssh://user@host:port`.

        Raises:
            OptionsError: It is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme != "ssh" or not parts.hostname or parts.path not in ("", "/") or parts.password:
            raise OptionsError("That is no address.", expected="ssh://user@host[:port]", found=repr(url))
        user = f"{parts.username}@" if parts.username else ""
        return cls(host=f"{user}{parts.hostname}", port=port, **more)

    def command(self) -> list[str]:
        """Return the command line of the client, which starts the worker there.

        Raises:
            RemoteError: There is no OpenSSH client.
        """
        client = shutil.which("ssh")
        if client is None:
            raise RemoteError("There is no OpenSSH client on this machine.", hint="Install openssh-client.")
        options = {
            "BatchMode": "yes",  # never ask: a question would look like a hang
            "ConnectTimeout": str(_CONNECT_S),
            "ServerAliveInterval": str(_ALIVE_S),
            "ServerAliveCountMax": "3",
        }
        command = [client, "-T", *(["-F", self.config] if self.config is not None else [])]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        command += ["-p", str(self.port)] if self.port is not None else []
        worker = f"exec {shlex.quote(self.python)} -m {_WORKER}"
        return [*command, "--", self.host, worker]


def exchange(
    address: Address,
    header: Mapping[str, Any],
    blobs: Mapping[str, Blob] | None,
    take: Callable[[Message], T],
    *,
    timeout_s: float,
) -> T:
    """Send a request and return what `take` makes of the answer.

    Args:
        address: The device.
        header: The request.
        blobs: What goes with it.
        take: Reads the answer's blobs.
        timeout_s: When to give up, connecting included.

    Raises:
        RemoteConnectionError: The device cannot be reached, or the connection broke.
        RemoteTimeoutError: It did not answer in time.
        EdgeInferError: What the device answered with.
    """
    process = subprocess.Popen(  # noqa: S603 (no shell here; the worker's command line is quoted)
        address.command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(process)

    said = _Listener(process)
    timer = threading.Timer(timeout_s, expire)
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended early; what it said tells why
            write_message(process.stdin, header, blobs)
        return take(_answer(process.stdout, address.host))
    except RemoteConnectionError as error:
        if expired.is_set():
            raise RemoteTimeoutError(
                "The device did not answer in time.",
                where=address.host,
                expected=f"an answer within {timeout_s:g} s",
                hint="It may be overloaded or hang; raise the timeout, or restart it.",
            ) from None
        raise _why(process, said, address, error) from None
    finally:
        timer.cancel()
        with contextlib.suppress(OSError):
            process.stdin.close()  # by which the worker knows that nobody listens any more
        _kill(process)
        process.wait()
        process.stdout.close()
        said.join()


def _answer(stream: IO[bytes], host: str) -> Message:
    answer = read_message(stream)
    if answer is None:
        raise RemoteConnectionError("The connection ended without an answer.")
    if "error" in answer.header:
        raise error_from(answer.header["error"], host)
    return answer


@final
class _Listener:
    """Keeps the last of what the client and the worker say on stderr."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._data = b""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while chunk := stream.read1(4096):  # type: ignore[attr-defined]
                self._data = (self._data + chunk)[-_STDERR_BYTES:]

    def join(self) -> None:
        self._thread.join(timeout=5)

    @property
    def text(self) -> str:
        return self._data.decode("utf-8", "replace").strip()


def _why(
    process: subprocess.Popen[bytes], said: _Listener, address: Address, error: RemoteConnectionError
) -> RemoteError:
    """Say why the connection ended, from what was said last."""
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        code = None
    said.join()
    last = "\n".join(said.text.splitlines()[-5:])
    if "No module named" in last or code in (126, 127):
        return RemoteError(
            "The device has no edgeinfer under that Python.",
            where=f"{address.host}: {address.python}",
            found=last or f"exit code {code}",
            hint="Install edgeinfer there, and name its Python: connect(..., python='/opt/edge/bin/python').",
        )
    if code == _SSH_FAILED:
        return RemoteConnectionError(
            "The device cannot be reached, or the connection to it broke.",
            where=address.host,
            found=last or "the client says nothing",
            hint="`ssh` to it by hand once: host key and login must work without a question.",
        )
    return RemoteConnectionError(
        error.what, where=address.host, found=last or (f"exit code {code}" if code is not None else "silence")
    )


def error_from(described: Mapping[str, Any], host: str) -> errors.EdgeInferError:
    """Return the error that a worker described, as the type that it was."""
    name = described.get("type", "")
    known = getattr(errors, name, None) if name in errors.__all__ else None
    cls = known if isinstance(known, type) and issubclass(known, errors.EdgeInferError) else RemoteError
    fields = {key: described.get(key) for key in ("where", "expected", "found", "hint")}
    fields["where"] = ": ".join(filter(None, (host, fields["where"])))
    return cls(str(described.get("what", "it failed")), facts=described.get("facts"), **fields)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
