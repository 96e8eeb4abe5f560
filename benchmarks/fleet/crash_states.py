"""Power loss: states that un-synced writes may leave, dropped or torn, and an agent that goes on from each.

    python benchmarks/fleet/crash_states.py N [SEED]

The calls of a real run (by strace) are replayed on a model of a disk that promises less than file systems do
(`tests/fleet/device/crash_states.py`). N states are drawn; those whose device has
the same bytes as another's are tried once.
"""

from __future__ import annotations

import collections
import hashlib
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.device.crash_states import TRACED, State, replay, write
from tests.fleet.device.killing import check_after_crash, run_injected
from tests.fleet.device.scenarios import SCENARIOS, prepare


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    scratch = Path(
        tempfile.mkdtemp(prefix="crash-states-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    counts: collections.Counter[str] = collections.Counter()
    tried: collections.Counter[str] = collections.Counter()
    violations = 0
    started = time.monotonic()
    for name, scenario in SCENARIOS.items():
        before, at, log = (scratch / f"{name}-{part}" for part in ("before", "at", "log"))
        prepare(before, scenario)
        shutil.copytree(before, at, symlinks=True)
        extra = ("-xx", "-s", "100000000", "-e", f"trace={TRACED}")
        assert run_injected(at, None, log=str(log), extra=extra) == 0
        calls = sum(1 for _ in replay(before, at, log))
        share = wanted / len(SCENARIOS) / calls
        seen: set[bytes] = set()
        for disk in replay(before, at, log):
            for _ in range(int(share) + (rng.random() < share % 1)):
                state = disk.after_power_loss(rng)
                counts[name] += 1
                digest = _digest(state)
                if digest in seen:
                    continue
                seen.add(digest)
                write(state, scratch / "state")
                try:
                    check_after_crash(scratch / "state", scenario)
                except Exception as error:
                    violations += 1
                    print(f"VIOLATION in {name}: {type(error).__name__}: {error}")
                shutil.rmtree(scratch / "state")
        tried[name] = len(seen)
        took = time.monotonic() - started
        print(
            f"{name}: {counts[name]} states after {calls} calls, {len(seen)} unlike, {took:.0f} s", flush=True
        )
    shutil.rmtree(scratch)
    print(
        f"{counts.total()} states, of which {tried.total()} unlike ones were tried, {violations} violations"
    )
    return 1 if violations else 0


def _digest(state: State) -> bytes:
    """Return what names the device's part of a state; the repository beside it is another machine's."""
    found = hashlib.sha256()
    for name, (kind, data) in sorted(state.items()):
        if name.startswith("dev/"):
            found.update(f"{name}\0{kind}\0{len(data)}\0".encode() + data)
    return found.digest()


if __name__ == "__main__":
    sys.exit(main())
