"""What may crash, hang or eat all memory does so in a child, and that is a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeinfer.tuning.fork_server import ForkServer, can_fork, fork_server
from edgeinfer.tuning.processes import Child, ChildError

MODULE = "tests.tuning.misbehaving"


@pytest.fixture(
    scope="module",
    params=["new", pytest.param("forked", marks=pytest.mark.skipif(not can_fork(), reason="no fork"))],
)
def server(request, tmp_path_factory):
    """What children are forked from: the same is a result, however they were started."""
    if request.param == "new":
        yield None
        return
    with ForkServer(tmp_path_factory.mktemp("server") / "log", [MODULE]) as server:
        yield server


@pytest.fixture
def child(tmp_path, server):
    return lambda **options: Child(tmp_path / "log", server, module=MODULE, **options)


@pytest.fixture
def failure(child):
    def fail(task: dict, timeout_s: float = 30.0, **options) -> ChildError:
        with child(**options) as process, pytest.raises(ChildError) as caught:
            process.ask(task, timeout_s)
        return caught.value

    return fail


def test_a_child_answers_task_after_task(child):
    with child() as process:
        assert process.ask({"task": "say", "answer": {"a": 1}}, 30) == {"a": 1}
        assert process.ask({"task": "say", "answer": {"b": [2]}}, 30) == {"b": [2]}


@pytest.mark.parametrize(
    ("task", "outcome", "said"),
    [
        ("abort", "crashed", "SIGABRT"),
        ("exit", "crashed", "exit code 3. the last words"),
        ("kill", "crashed", "SIGKILL"),
    ],
)
def test_a_child_that_dies(failure, task, outcome, said):
    error = failure({"task": task})
    assert (error.outcome, said in error.reason) == (outcome, True), error


@pytest.mark.parametrize("outcome", ["refused", "failed", "out_of_memory"])
def test_an_outcome_that_the_child_says_itself(failure, outcome):
    answer = {"outcome": outcome, "reason": "why"}
    error = failure({"task": "say", "answer": answer})
    assert (error.outcome, error.reason) == (outcome, "why")


def test_a_child_that_hangs_is_killed_with_all_that_it_started(failure, tmp_path):
    file = tmp_path / "pid"
    error = failure({"task": "hang", "file": str(file)}, timeout_s=3.0)
    assert error.outcome == "hung"
    helper = int(file.read_text())
    assert _ended(helper)


def test_a_child_that_takes_too_much_memory_is_killed(failure):
    error = failure({"task": "eat"}, max_bytes=200 << 20)
    assert error.outcome == "out_of_memory"
    assert "210 MB may be taken" in error.reason


def test_children_are_apart_from_each_other(tmp_path, server):
    with Child(tmp_path / "a", server, module=MODULE) as a, Child(tmp_path / "b", server, module=MODULE) as b:
        with pytest.raises(ChildError, match="SIGKILL"):
            a.ask({"task": "kill"}, 30)
        assert b.ask({"task": "say", "answer": {"still": "here"}}, 30) == {"still": "here"}


@pytest.mark.skipif(not can_fork(), reason="children are not forked here")
def test_a_server_that_was_killed_is_started_again(tmp_path):
    with ForkServer(tmp_path / "server", [MODULE]) as server:
        os.kill(server.pid, signal.SIGKILL)
        with Child(tmp_path / "log", server, module=MODULE) as process:
            assert process.ask({"task": "say", "answer": {"a": 1}}, 30) == {"a": 1}


@pytest.mark.skipif(not can_fork(), reason="children are not forked here")
def test_runs_within_one_server_share_it(tmp_path):
    with fork_server(tmp_path) as outer, fork_server(tmp_path) as inner:
        assert inner is outer is not None
        pid = outer.pid
    assert _ended(pid)
    with fork_server(tmp_path) as other:
        assert other is not None
        assert other.pid != pid


@pytest.mark.skipif(not can_fork(), reason="children are not forked here")
def test_a_server_that_cannot_import_is_a_result(tmp_path):
    with ForkServer(tmp_path / "server", ["no_such_module"]) as server, pytest.raises(ChildError) as caught:
        Child(tmp_path / "log", server, module=MODULE)
    assert caught.value.outcome == "crashed"


@pytest.mark.skipif(not can_fork(), reason="children are not forked here")
def test_the_server_and_its_children_end_with_the_process_that_started_them(tmp_path):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from edgeinfer.tuning.fork_server import ForkServer\n"
        "from edgeinfer.tuning.processes import Child\n"
        f"server = ForkServer(Path({str(tmp_path)!r}, 'server'))\n"
        f"child = Child(Path({str(tmp_path)!r}, 'child'), server)\n"
        "print(server.pid, child.pid, flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        started = [int(word) for word in process.stdout.readline().split()]
        assert all(map(_alive, started))
        process.kill()
    assert _ended(*started)


def _ended(*pids: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end and any(map(_alive, pids)):
        time.sleep(0.05)
    return not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.getpgid(pid) != os.getpgid(0)
