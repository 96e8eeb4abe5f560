"""A device like a small Raspberry Pi: the kernel gives agent and application one core and so much memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import edgeinfer as ei
from edgeinfer.fleet.device.assignment import Assignment, SignedAssignments
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.status import AgentStatus
from tests.fleet.device.cgroup import Group
from tests.fleet.device.kit import artifact_folder

__all__ = ["Figures", "update_on"]

X = np.ones((1, 4), np.float32)
OPTIONS = ("soak_s=2", "soak_requests=50", "poll_s=0.2", "tick_s=0.1", "staging_runs=60")
# Asks without pause until SIGTERM, then tells what became of its requests.
APPLICATION = """
import collections, json, signal, sys, threading
import numpy as np
import edgeinfer as ei

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
answered, failed = collections.Counter(), []
with ei.fleet.connect(sys.argv[1]) as device:
    model = device.model("m")
    print("ready", flush=True)
    while not stop.wait(0.02):
        try:
            with model.request() as session:
                session.infer({"x": np.ones((1, 4), np.float32)})
                answered[session.version] += 1
        except Exception as error:
            failed.append(str(error))
print(json.dumps([answered, failed]), flush=True)
"""


class Figures(NamedTuple):
    """What an update on a small device cost.

    Attributes:
        answered: Requests, by release.
        failed: Why requests failed.
        phase: How the update ended.
        bytes: The most memory at once. `agent` (with the children in which it tries models), `application`
            and `both` are what the kernel charged to their groups: libraries that others have read before
            are not in it. `agent resident` and `application resident` are of the processes alone, and with
            all libraries.
        killed: How many processes the kernel killed for want of memory.
    """

    answered: dict[str, int]
    failed: list[str]
    phase: str
    bytes: dict[str, int]
    killed: int


def update_on(group: Group, folder: Path) -> Figures:
    """Install a release, start an application that asks without pause, and update it, all in a group."""
    fleet = ei.fleet.open(folder / "fleet")
    (folder / "root.json").write_bytes(fleet.root)
    agents, applications = group.child("agent"), group.child("application")
    _assign(fleet, folder, "1")
    agent = _start(_agent(folder), agents.enter, stdout=subprocess.DEVNULL)
    _wait_for(folder, agent, generation=1)
    command = [sys.executable, "-c", APPLICATION, str(folder / "device")]
    application = _start(command, applications.enter, stdout=subprocess.PIPE)
    assert application.stdout is not None
    assert application.stdout.readline() == b"ready\n"
    _assign(fleet, folder, "2")
    status = _wait_for(folder, agent, generation=2)
    resident = {
        f"{name} resident": _resident(p.pid) for name, p in (("agent", agent), ("application", application))
    }
    agent.send_signal(signal.SIGTERM)
    agent.wait()
    application.send_signal(signal.SIGTERM)
    answered, failed = json.loads(application.communicate()[0])
    return Figures(
        answered=answered,
        failed=failed,
        phase=status.phase.value,
        bytes={
            "agent": agents.peak_bytes,
            "application": applications.peak_bytes,
            "both": group.peak_bytes,
            **resident,
        },
        killed=agents.killed + applications.killed,
    )


def _wait_for(folder: Path, agent: subprocess.Popen[bytes], generation: int) -> AgentStatus:
    """Wait until an update has ended, well or not."""
    while True:
        status = AgentStatus.of(folder / "device")
        bad = status.phase.final and status.phase is not Phase.COMMITTED and status.phase is not Phase.IDLE
        if bad or (status.phase is Phase.COMMITTED and status.generation == generation):
            return status
        assert agent.poll() is None, agent.returncode
        time.sleep(0.1)


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _assign(fleet: ei.fleet.Fleet, folder: Path, version: str) -> None:
    """Publish a release and assign it to the device."""
    from edgeinfer.fleet.operator.assigning import signer_of

    release = fleet.publish("m", artifact_folder(float(version)), golden=[{"x": X}], version=version)
    assignment = Assignment(
        device="small", incarnation=1, model="m", generation=(1, int(version)), release=release.digest,
        version=version,
    )  # fmt: skip
    document = SignedAssignments(
        device="small", incarnation=1, issued_at=int(version), assignments=(assignment,)
    )
    desired = folder / "fleet" / "repository" / "desired"
    desired.mkdir(exist_ok=True)
    signed = document.to_bytes(signer_of(fleet.repository.keys)(document.payload()))
    (desired / "small.json").write_bytes(signed)


def _agent(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "edgeinfer", "agent", "run", str(folder / "device"), "--device", "small"]
    command += ["--source", str(folder / "fleet"), "--root", str(folder / "root.json")]
    return command + [part for option in OPTIONS for part in ("--option", option)]


def _start(command: list[str], enter: Callable[[], None], *, stdout: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        command, env=environment, preexec_fn=enter, stdout=stdout, stderr=subprocess.DEVNULL
    )
