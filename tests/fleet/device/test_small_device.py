"""A device like a small Raspberry Pi: one core, and 256 MB for the agent and all that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgeinfer as ei
from edgeinfer.fleet.device.assignment import Assignment, SignedAssignments
from edgeinfer.fleet.device.status import AgentStatus
from tests.fleet.device.kit import artifact_folder

LIMIT = 256_000_000


def test_installs_a_model_on_one_core_in_256_mb(tmp_path):
    pytest.importorskip("cryptography", reason="signing needs it")
    from edgeinfer.fleet.operator.assigning import signer_of

    fleet = ei.fleet.open(tmp_path / "fleet")
    release = fleet.publish("m", artifact_folder(), golden=[{"x": ones()}])
    assignment = Assignment(
        device="small", incarnation=1, model="m", generation=(1, 1), release=release.digest, version="1"
    )
    document = SignedAssignments(device="small", incarnation=1, issued_at=1, assignments=(assignment,))
    desired = tmp_path / "fleet" / "repository" / "desired"
    desired.mkdir()
    signed = document.to_bytes(signer_of(fleet.repository.keys)(document.payload()))
    (desired / "small.json").write_bytes(signed)
    (tmp_path / "root.json").write_bytes(fleet.root)
    command = [sys.executable, "-m", "edgeinfer", "agent", "run", str(tmp_path / "device"), "--until-idle"]
    command += [
        "--device",
        "small",
        "--source",
        str(tmp_path / "fleet"),
        "--root",
        str(tmp_path / "root.json"),
    ]
    agent = subprocess.Popen(
        [*command, "--option", "soak_s=0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        stderr=subprocess.DEVNULL,
    )
    peak = 0
    while agent.poll() is None:
        peak = max(peak, sum(map(_resident, _family(agent.pid))))
        time.sleep(0.02)
    status = AgentStatus.of(tmp_path / "device")
    assert (agent.returncode, status.phase, status.models["m"].version) == (0, ei.fleet.Phase.COMMITTED, "1")
    assert 0 < peak < LIMIT, f"{peak / 1e6:.0f} MB"


def ones():
    import numpy as np

    return np.ones((1, 4), np.float32)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *(int(child) for child in children.read_text().split())]
    except OSError:
        return [pid]


def _resident(pid: int) -> int:
    """Return the memory of a process; what it shares with others is counted in part (Pss)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
