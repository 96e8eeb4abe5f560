"""Deadlines, and what makes latency steadier: done where permitted, told where not, undone at the end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.backends.onnxruntime_.options import OnnxRuntimeOptions
from edgeinfer.backends.protocol import Capabilities
from edgeinfer.errors import OptionsError
from edgeinfer.runtime import realtime, steady
from edgeinfer.runtime.deadlines import Deadline, Miss
from edgeinfer.runtime.steady import ProcessHold, Steady, steady_of, with_spinning

X = {"x": np.ones((2, 3), np.float32)}
ROOT = os.geteuid() == 0 and hasattr(os, "sched_setscheduler")


@pytest.fixture(scope="module")
def artifact() -> ei.Artifact:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }'
    return ei.compile(onnx.parser.parse_model(text), "onnxruntime")


# Deadlines


def test_each_miss_is_counted_and_told(artifact):
    told: list[Miss] = []
    with ei.load(artifact, deadline_ms=1e-6, on_miss=told.append) as session:
        for _ in range(3):
            session.infer(X)
        assert session.deadline_misses == 3
        assert "missed 3 times" in str(session.table())
    assert [miss.misses for miss in told] == [1, 2, 3]
    assert all(miss.latency_ms > miss.deadline_ms == 1e-6 for miss in told)


def test_who_keeps_the_deadline_is_not_told(artifact):
    told: list[Miss] = []
    with ei.load(artifact, deadline_ms=1e6, on_miss=told.append) as session:
        session.infer(X)
        assert session.deadline_misses == 0
    assert not told


def test_an_error_of_the_callback_costs_no_outputs(artifact, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    def fails(miss: Miss) -> None:
        raise ValueError("mine")

    with ei.load(artifact, deadline_ms=1e-6, on_miss=fails) as session:
        assert session.infer(X)["y"].shape == (2, 3)
    assert str(seen[0].exc_value) == "mine"
    assert seen[0].object is fails


def test_misses_of_several_threads_are_all_counted():
    deadline = Deadline(1.0)
    threads = [
        threading.Thread(target=lambda: [deadline.check(2_000_000) for _ in range(1000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert deadline.misses == 4000


def test_what_cannot_be_called_is_refused(artifact):
    with pytest.raises(OptionsError, match="on_miss"):
        ei.load(artifact, deadline_ms=1.0, on_miss="print")  # type: ignore[arg-type]


def test_a_session_checks_a_budget(artifact):
    with ei.load(artifact) as session:
        limits = ei.Budget(latency_p50_ms=1e6, latency_p99_ms=1e-6, peak_bytes="1 GB")
        assert [violation.not_measured for violation in session.check(limits)] == [True] * 3
        session.infer(X)
        broken, unknown = session.check(limits)
        assert (broken.limit, unknown.limit) == ("latency_p99_ms", "peak_bytes")
        assert broken.ratio > 1
        assert unknown.not_measured


# Steadiness


def test_what_is_asked_for_is_told(artifact):
    with ei.load(artifact, steady=True) as session:
        session.infer(X)
        found = {measure.name: measure for measure in session.steady}
        assert set(found) == {"realtime", "lock_memory", "freeze_gc", "spin"}
        assert found["freeze_gc"].applied
        assert gc.get_freeze_count() > 0
        assert found["spin"].applied
        assert all(measure.detail for measure in found.values())
        for measure in found.values():
            assert measure.applied or f"no: {measure.detail}" in str(session.table())
    assert gc.get_freeze_count() == 0


def test_without_it_nothing_is_done(artifact):
    with ei.load(artifact) as session:
        assert session.steady == ()
        assert gc.get_freeze_count() == 0


@pytest.mark.skipif(
    not ROOT or bool(realtime.realtime_refusal()), reason="real-time priority is not permitted"
)
def test_real_time_lasts_until_the_session_closes(artifact):
    def policies() -> set[int]:
        found = set()
        for task in Path("/proc/self/task").iterdir():
            try:
                found.add(os.sched_getscheduler(int(task.name)) & ~os.SCHED_RESET_ON_FORK)
            except ProcessLookupError:  # it ended meanwhile
                continue
        return found

    before = os.sched_getscheduler(0)
    with ei.load(artifact, steady={"lock_memory": False}, options={"threads": 2}) as session:
        assert os.sched_getscheduler(0) == before  # not before it calls the session
        session.infer(X)
        assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        # A process that is started meanwhile is a normal one: a busy one would stop the machine.
        asks = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0) == os.SCHED_OTHER)"]
        assert subprocess.run(asks, capture_output=True, text=True, check=True).stdout == "True\n"
    assert os.sched_getscheduler(0) == before
    assert os.SCHED_FIFO not in policies()


def test_a_refusal_of_real_time_is_a_finding_and_no_error(artifact, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with ei.load(artifact, steady=Steady(lock_memory=False)) as session:
        session.infer(X)
        (found,) = [measure for measure in session.steady if measure.name == "realtime"]
    assert not found.applied
    assert "rtprio" in found.detail


def test_a_limit_on_locked_memory_is_a_refusal(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    monkeypatch.setattr(steady.Path, "read_text", lambda *_, **__: "CapEff:\t0000000000000000\n")
    hold = ProcessHold(Steady(realtime=False, freeze_gc=False))
    (found,) = hold.measures
    hold.release()
    assert not found.applied
    assert "8.389 MB" in found.detail


def test_memory_is_locked_where_that_is_permitted():
    code = """
from edgeinfer.runtime.steady import ProcessHold, Steady
def locked():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck"))
first, second = (ProcessHold(Steady(realtime=False, freeze_gc=False)) for _ in range(2))
held = [first.measures[0].applied, locked()]
first.release()
held.append(locked())
second.release()
print(*held, locked())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    applied, *sizes = done.stdout.split()
    if applied == "False":
        pytest.skip("locking memory is not permitted")
    one, two, none = map(int, sizes)
    assert one > 1000  # kB
    assert two > 1000  # another session still needs it
    assert none == 0


@pytest.mark.parametrize("value", ["yes", 1, {"nonsense": True}])
def test_other_values_are_refused(value):
    with pytest.raises(OptionsError, match="steadiness"):
        steady_of(value)


def test_the_runtimes_own_option_for_spinning_is_used():
    can = Capabilities(available=True, spin_option="allow_spinning")
    assert with_spinning(None, False, can)[0] == {"allow_spinning": False}
    options, measure = with_spinning({"threads": 1, "allow_spinning": True}, False, can)
    assert options == {"threads": 1, "allow_spinning": True}
    assert not measure.applied
    options, measure = with_spinning(OnnxRuntimeOptions(threads=3), False, can)
    assert options == OnnxRuntimeOptions(threads=3, allow_spinning=False)
    assert measure.applied
    options, measure = with_spinning({"threads": 1}, False, Capabilities(available=True))
    assert options == {"threads": 1}
    assert "no such option" in measure.detail
    assert with_spinning(None, None, can) == (None, None)
    # What is no option of the backend is left to the backend, which refuses it.
    options, measure = with_spinning(Steady(), False, can)
    assert options == Steady()
    assert not measure.applied


def test_idle_threads_do_not_spin_under_real_time_priority():
    assert Steady().spins is False
    assert Steady(spin=True).spins is True
    assert Steady(realtime=False).spins is None
