"""A run that is killed with -9 at several points ends as one that was never killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.tuning.simulated import World, problem_of_kills, run

ROOT = Path(__file__).parents[2]
KILLS = 3


def test_killed_at_several_points_it_proposes_the_same(tmp_path):
    draw = random.Random(0)
    journal = tmp_path / "journal.jsonl"
    kept = b""
    for _ in range(KILLS):
        process = started(journal, pause_s=0.02)
        wanted = kept.count(b"\n") + draw.randint(1, 5)
        end = time.monotonic() + 120
        while lines(journal) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.wait()
        now = journal.read_bytes()
        assert now.startswith(kept), "a record was lost"
        kept = now[: now.rfind(b"\n") + 1]
        assert kept.count(b"\n") >= wanted
    assert started(journal, pause_s=0.0).wait(timeout=300) == 0
    found = [json.loads(line) for line in journal.read_text().splitlines()]
    assert found == run(problem_of_kills(), World())


def started(journal: Path, pause_s: float) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.tuning.killed_run", str(journal), str(pause_s)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0
