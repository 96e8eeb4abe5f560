"""A child process that tries a model: started, watched from outside, and ended whatever it does."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from edgeinfer.fleet.device.probe import Probe

__all__ = ["ChildFailed", "Seen", "child_events"]

_CHILD = "edgeinfer.fleet.device.staging_child"
_MAX_EVENT_BYTES = 4 << 20
_TICK_S = 0.05
_START_S = 120.0
# How many times its time-out a child may take where it waits for a processor again and again.
_STARVED = 10


class ChildFailed(Exception):  # noqa: N818 (a result, which no caller of the agent sees)
    """The child crashed, hung, or grew too large.

    Args:
        code: Which of them, in one word.
        what: The same for people.
    """

    def __init__(self, code: str, what: str) -> None:
        self.code = code
        super().__init__(what)


@final
class Seen:
    """What was seen of the child from outside.

    Args:
        max_bytes: How large it may grow.
        alive: Called at every look; what it raises ends the child.
    """

    def __init__(self, max_bytes: float | None = None, alive: Callable[[], None] | None = None) -> None:
        self.max_bytes = max_bytes
        self.alive = alive
        self.temperature_c: float | None = None
        self.power_w: float | None = None

    def look(self, child: subprocess.Popen[bytes], probe: Probe) -> None:
        """Look once. Raises ChildFailed of a child that is too large, and what `alive` raises."""
        if self.alive is not None:
            self.alive()
        temperature, power = probe.temperature_c(), probe.power_w()
        if temperature is not None:
            self.temperature_c = max(temperature.value, self.temperature_c or temperature.value)
        if power is not None:
            self.power_w = max(power.value, self.power_w or power.value)
        process = probe.process(child.pid)
        if process is not None and self.max_bytes is not None and process[1] > self.max_bytes:
            raise ChildFailed("peak_bytes", f"it grew to {process[1] / 1e6:.0f} MB and was ended")

    def metrics(self) -> dict[str, float]:
        """Return the highest readings, by the names of the budget's limits."""
        found = {"temperature_c": self.temperature_c, "power_w": self.power_w}
        return {name: value for name, value in found.items() if value is not None}


def child_events(
    request: dict[str, Any], *, timeout_s: float, silence_s: float, seen: Seen, probe: Probe, nice: int
) -> Iterator[Mapping[str, Any]]:
    """Start a child, and yield what it tells.

    Args:
        request: What it is to do.
        timeout_s: How long it may take, without the time in which it waits for a processor: on a device that
            is busy a sound model is slow, and no device refuses one for that.
        silence_s: How long it may tell nothing; the same holds.
        seen: Takes note of what is seen of it from outside.
        probe: What it is seen with.
        nice: How far it steps back behind what serves.

    Raises:
        ChildFailed: It crashed, hung or grew too large. It has ended.
    """
    request = {**request, "parent": os.getpid(), "nice": nice}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(  # noqa: S603 (this interpreter, this package)
        [sys.executable, "-m", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # so that all that it starts ends with it
    )
    try:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end tells why
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
        yield from _watched(child, timeout_s, silence_s, seen, probe)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        child.wait()


def _watched(
    child: subprocess.Popen[bytes], timeout_s: float, silence_s: float, seen: Seen, probe: Probe
) -> Iterator[Mapping[str, Any]]:
    assert child.stdout is not None
    assert child.stderr is not None
    clock = _Clock(child.pid, most=(_STARVED - 1) * timeout_s)
    started = heard = clock.now()
    line = b""
    errors = b""
    with selectors.DefaultSelector() as selector:
        for pipe in (child.stdout, child.stderr):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(_TICK_S):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    errors = (errors + data)[-4096:]
                else:
                    heard = clock.now()
                    *lines, line = (line + data).split(b"\n")
                    if len(line) > _MAX_EVENT_BYTES:
                        raise ChildFailed("crash", "it told more than can be true")
                    for text in lines:
                        yield _event(text)
            now = clock.now()
            # Until the first event the interpreter and this package start, which no model is to blame for.
            patience = silence_s if heard > started else max(silence_s, _START_S)
            if now - started > timeout_s or now - heard > patience:
                waited = f", {clock.waited:.0f} s of waiting for a processor not counted" * (
                    clock.waited >= 1
                )
                raise ChildFailed(
                    "hang", f"it had not ended after {now - started:.0f} s{waited}, and was ended"
                )
            seen.look(child, probe)
    try:
        code = child.wait(timeout=max(1.0, started + timeout_s - clock.now()))
    except subprocess.TimeoutExpired:
        raise ChildFailed("hang", "it closed its output and did not end") from None
    if code != 0:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ChildFailed("crash", f"the child process ended with {how}: {''.join(last)}")


@final
class _Clock:
    """The system's monotonic clock, which stands while a process waits for a processor."""

    def __init__(self, pid: int, most: float) -> None:
        self._pid, self._most = pid, most
        self.waited = 0.0

    def now(self) -> float:
        self.waited = max(self.waited, min(_waited_s(self._pid), self._most))  # a thread may have ended
        return time.monotonic() - self.waited


def _waited_s(pid: int) -> float:
    """Return how long the thread that waited longest was ready to run and did not; 0 where it is not told."""
    found = [0.0]
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or this kernel keeps none
            found.append(int(path.read_text().split()[1]) / 1e9)
    return max(found)


def _event(text: bytes) -> Mapping[str, Any]:
    try:
        event = json.loads(text)
    except ValueError as error:
        raise ChildFailed("crash", f"it told what is no event: {error}") from error
    if not isinstance(event, dict):
        raise ChildFailed("crash", "it told what is no event")
    return event
