"""One core and 256 MB, which the kernel enforces, are enough for agent and application through an update."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.fleet.device.cgroup import NotPermittedError, limited
from tests.fleet.device.small_device import update_on

LIMIT = 256 << 20


def test_updates_on_one_core_in_256_mb(tmp_path):
    pytest.importorskip("cryptography", reason="signing needs it")
    try:
        with limited(LIMIT, cores=1.0) as group:
            hungry = [sys.executable, "-c", f"bytearray(b'x') * {2 * LIMIT}"]
            too_much = subprocess.run(hungry, preexec_fn=group.child("hungry").enter, check=False)
            assert too_much.returncode == -signal.SIGKILL  # the limit is real
            found = update_on(group, tmp_path)
    except NotPermittedError as error:
        pytest.skip(f"no control group with limits: {error}")
    assert found.phase == "committed", found
    assert found.failed == []
    assert found.killed == 0
    assert set(found.answered) == {"1", "2"}
    assert 0 < found.bytes["agent"] <= LIMIT
    assert found.bytes["agent resident"] + found.bytes["application resident"] < LIMIT
