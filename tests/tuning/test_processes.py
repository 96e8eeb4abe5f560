"""What may crash, hang or eat all memory does so in a child, and that is a result."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgeinfer.tuning.processes import Child, ChildError

MODULE = "tests.tuning.misbehaving"


def child(tmp_path: Path, **options) -> Child:
    return Child(tmp_path / "log", module=MODULE, **options)


def failure(tmp_path: Path, task: dict, timeout_s: float = 30.0, **options) -> ChildError:
    with child(tmp_path, **options) as process, pytest.raises(ChildError) as caught:
        process.ask(task, timeout_s)
    return caught.value


def test_a_child_answers_task_after_task(tmp_path):
    with child(tmp_path) as process:
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
def test_a_child_that_dies(tmp_path, task, outcome, said):
    error = failure(tmp_path, {"task": task})
    assert (error.outcome, said in error.reason) == (outcome, True), error


@pytest.mark.parametrize("outcome", ["refused", "failed", "out_of_memory"])
def test_an_outcome_that_the_child_says_itself(tmp_path, outcome):
    answer = {"outcome": outcome, "reason": "why"}
    error = failure(tmp_path, {"task": "say", "answer": answer})
    assert (error.outcome, error.reason) == (outcome, "why")


def test_a_child_that_hangs_is_killed_with_all_that_it_started(tmp_path):
    file = tmp_path / "pid"
    error = failure(tmp_path, {"task": "hang", "file": str(file)}, timeout_s=3.0)
    assert error.outcome == "hung"
    helper = int(file.read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end and _alive(helper):
        time.sleep(0.05)
    assert not _alive(helper)


def test_a_child_that_takes_too_much_memory_is_killed(tmp_path):
    error = failure(tmp_path, {"task": "eat"}, max_bytes=200 << 20)
    assert error.outcome == "out_of_memory"
    assert "210 MB may be taken" in error.reason


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and os.getpgid(pid) != os.getpgid(0)
