"""The worker on a device: one request on stdin, one answer on stdout, and it ends.

It measures in a child process with a process group and a deadline of its own, and kills that when nobody
listens any more, so that a broken connection leaves nothing running. It imports nothing that a device-only
install does not have.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from edgeinfer import __version__
from edgeinfer.devices.remote.messages import Blob, Message, read_message, write_message
from edgeinfer.devices.remote.store import Store, default_folder
from edgeinfer.errors import EdgeInferError, RemoteError, RemoteTimeoutError

__all__ = ["describe_error", "main"]

_MEASURE = "edgeinfer.devices.remote.measure"
Answer = tuple[dict[str, Any], dict[str, Blob]]


def main() -> int:
    """Serve the request; returns the exit code."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints must not stand in an answer
    try:
        message = read_message(sys.stdin.buffer)
        if message is None:
            return 1
        header, blobs = _serve(message)
    except Exception as error:
        header, blobs = {"error": describe_error(error)}, {}
    try:
        write_message(answers, header, blobs)
        answers.close()
    except BrokenPipeError:  # nobody listens any more
        return 1
    return 0


def describe_error(error: Exception) -> dict[str, Any]:
    """Return an error as JSON-compatible values, from which the other side makes it again."""
    if not isinstance(error, EdgeInferError):
        return {"type": "RemoteError", "what": f"{type(error).__name__}: {error}"}
    texts = {name: getattr(error, name) for name in ("where", "expected", "found", "hint")}
    return {
        "type": type(error).__name__,
        "what": error.what,
        **{name: None if value is None else str(value) for name, value in texts.items()},
        "facts": json.loads(json.dumps(dict(error.facts), default=str)),
    }


def _serve(message: Message) -> Answer:
    request = message.header
    store = Store(Path(request["folder"]) if request.get("folder") else default_folder())
    operation = request.get("operation")
    if operation == "hello":
        return _hello(), {}
    if operation == "has":
        return {"has": store.path(request["key"]) is not None}, {}
    if operation == "put":
        store.put(request["key"], message)
        return {}, {}
    if operation == "clear":
        return {"cleared": store.clear()}, {}
    if operation == "measure":
        return _measure(store, request, message)
    raise RemoteError("The device does not know that operation.", found=operation)


def _hello() -> dict[str, Any]:
    from edgeinfer.devices.probe.local import local

    return {"version": __version__, "python": platform.python_version(), "local": local().to_dict()}


def _measure(store: Store, request: Mapping[str, Any], message: Message) -> Answer:
    artifact = store.path(request["key"])
    if artifact is None:
        raise RemoteError(
            "The artifact is no longer on the device.", where=request["key"], hint="Push it again."
        )
    with store.scratch() as folder:
        for name in message.sizes:
            (folder / name).write_bytes(message.read(name))
        task = {**request["task"], "artifact": str(artifact), "scratch": str(folder)}
        answer = _in_child(task, float(request["timeout_s"]))
        made = folder / "latencies.npy"
        blobs: dict[str, Blob] = {"latencies.npy": made.read_bytes()} if made.is_file() else {}
    return answer, blobs


def _in_child(task: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run a measurement in a process of its own; kill it at the deadline, or when nobody listens any more."""
    child = subprocess.Popen(  # noqa: S603 (this Python, a module of ours)
        [sys.executable, "-m", _MEASURE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(task).encode())
        child.stdin.close()
        output = _output(child.stdout, time.monotonic() + timeout_s)
        if output is None:
            raise RemoteTimeoutError(
                "The measurement on the device took too long.",
                expected=f"at most {timeout_s:g} s",
                hint="Measure for a shorter time, or raise timeout_s.",
            )
        code = child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what it started, too
        child.wait()
        child.stdout.close()
    try:
        answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        killed = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise RemoteError(
            "The measurement on the device ended without a result.",
            found=killed,
            hint="Perhaps there is not enough memory." if code < 0 else None,
        ) from None
    return answer


def _output(stream: IO[bytes], end: float) -> bytes | None:
    """Return what the child prints until it ends; None at the deadline."""
    parts: list[bytes] = []
    watched: list[Any] = [stream, sys.stdin.buffer]
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select(watched, [], [], left)
        if sys.stdin.buffer in ready and not os.read(0, 4096):
            raise SystemExit(1)  # nobody listens any more
        if stream in ready:
            part = os.read(stream.fileno(), 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


if __name__ == "__main__":
    sys.exit(main())
