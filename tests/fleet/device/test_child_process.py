"""How long a child process may be silent."""

from __future__ import annotations

import os
import time

import pytest

from edgeinfer.fleet.device import child_process
from edgeinfer.fleet.device.child_process import ChildFailed, Seen, child_events
from edgeinfer.fleet.device.probe import SystemProbe


def events(monkeypatch, *, timeout_s: float = 1.0):
    monkeypatch.setattr(child_process, "_CHILD", "tests.fleet.device.silent_child")
    monkeypatch.setattr(child_process, "_START_S", 0.0)
    return list(
        child_events({}, timeout_s=timeout_s, silence_s=1.0, seen=Seen(), probe=SystemProbe(), nice=0)
    )


def test_a_silent_child_is_ended(monkeypatch):
    monkeypatch.setattr(child_process, "_waited_s", lambda pid: 0.0)
    with pytest.raises(ChildFailed, match=r"after \d+ s, and was ended") as caught:
        events(monkeypatch)
    assert caught.value.code == "hang"


def test_a_child_that_waits_for_a_processor_is_not_silent(monkeypatch):
    begun = time.monotonic()
    monkeypatch.setattr(child_process, "_waited_s", lambda pid: time.monotonic() - begun)
    assert events(monkeypatch, timeout_s=10.0) == [{"event": "late"}]


def test_a_child_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(child_process, "_STARVED", 1)
    monkeypatch.setattr(child_process, "_waited_s", lambda pid: 1e9)
    with pytest.raises(ChildFailed, match="and was ended"):
        events(monkeypatch)


def test_what_linux_tells_of_waiting():
    waited = child_process._waited_s(os.getpid())
    assert 0 <= waited < time.clock_gettime(time.CLOCK_BOOTTIME)
    assert child_process._waited_s(2**22 + 1) == 0.0
