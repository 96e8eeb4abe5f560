"""kill -9 at every system call by which the agent changes the disk, and every call failing once.

    python benchmarks/fleet/kill_points.py [SCENARIO…] [--kind KIND…] [--part I/N]

KIND is kill (the default), ENOSPC or EIO.

After each, an application must find exactly the old or the new set of models, every file verified, and the
next agent must come to the end. Needs strace.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.device.killing import check_after_crash, kill_points, run_injected
from tests.fleet.device.scenarios import SCENARIOS, prepare

KINDS = {"kill": "signal=SIGKILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--kind", action="append", choices=KINDS, help="what happens to each call")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="only each N-th point, from the I-th on")
    arguments = parser.parse_args()
    first, every = map(int, arguments.part.split("/"))
    kinds = arguments.kind or ["kill"]
    violations = 0
    for name in arguments.scenarios:
        scenario = SCENARIOS[name]
        scratch = Path(tempfile.mkdtemp(prefix="kill-points-", dir=_memory()))
        prepare(scratch / "template", scenario)
        points = list(kill_points(scratch / "template", scratch))[first::every]
        calls = collections.Counter(call for call, _ in points)
        counted = ", ".join(f"{n} {call}" for call, n in calls.most_common())
        print(f"{name}: {len(points)} calls: {counted}", flush=True)
        for kind in kinds:
            started, bad, hit = time.monotonic(), 0, 0
            for call, n in points:
                folder = scratch / "run"
                shutil.copytree(scratch / "template", folder, symlinks=True)
                status = run_injected(folder, f"{call}:{KINDS[kind]}:when={n}")
                hit += status == 9 or kind != "kill"
                try:
                    check_after_crash(folder, scenario)
                except Exception as error:
                    bad += 1
                    print(f"  VIOLATION {kind} at {call} {n}: {type(error).__name__}: {error}")
                shutil.rmtree(folder)
            violations += bad
            took = time.monotonic() - started
            print(f"  {kind}: {hit} of {len(points)} points, {bad} violations, {took:.0f} s", flush=True)
        shutil.rmtree(scratch)
    print(f"violations: {violations}")
    return 1 if violations else 0


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
