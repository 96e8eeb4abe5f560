"""Power loss: states that un-synced writes may leave, dropped or torn, and an agent that goes on from each.

    python benchmarks/fleet/crash_states.py N [SEED]

The calls of a real run (by strace) are replayed on a model of a disk that promises less than file systems do
(`tests/fleet/device/crash_states.py`). N states are drawn; those whose device has
the same bytes as another's are tried once. SIGTERM ends it with what was found so far.
"""

from __future__ import annotations

import collections
import hashlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.device.crash_states import TRACED, State, replay, write
from tests.fleet.device.killing import check_after_crash, run_injected
from tests.fleet.device.scenarios import SCENARIOS, prepare

_ROUNDS = 20  # each through all scenarios, so that what was done so far is of all


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    scratch = Path(tempfile.mkdtemp(prefix="crash-states-", dir=memory))
    runs = {name: _traced(scratch, name) for name in SCENARIOS}
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    counts: collections.Counter[str] = collections.Counter()
    seen: set[bytes] = set()
    violations = 0
    started = time.monotonic()
    for _ in range(_ROUNDS):
        for name, (before, at, log, calls) in runs.items():
            share = wanted / _ROUNDS / len(runs) / calls
            for disk in replay(before, at, log):
                for _ in range(int(share) + (rng.random() < share % 1)):
                    if ended:
                        break
                    state = disk.after_power_loss(rng)
                    counts[name] += 1
                    digest = _digest(name, state)
                    if digest not in seen:
                        seen.add(digest)
                        violations += not _holds(state, scratch / "state", name)
        found = ", ".join(f"{count} in {name}" for name, count in counts.items())
        took = time.monotonic() - started
        print(
            f"{counts.total()} states ({found}), {len(seen)} of them unlike and tried, "
            f"{violations} violations, {took:.0f} s",
            flush=True,
        )
        if ended:
            break
    shutil.rmtree(scratch)
    return 1 if violations else 0


def _traced(scratch: Path, name: str) -> tuple[Path, Path, Path, int]:
    """Run a scenario to its end once; return its folder before, where it ran, its calls, and how many."""
    before, at, log = (scratch / f"{name}-{part}" for part in ("before", "at", "log"))
    prepare(before, SCENARIOS[name])
    shutil.copytree(before, at, symlinks=True)
    extra = ("-xx", "-s", "100000000", "-e", f"trace={TRACED}")
    assert run_injected(at, None, log=str(log), extra=extra) == 0
    return before, at, log, sum(1 for _ in replay(before, at, log))


def _holds(state: State, folder: Path, name: str) -> bool:
    """Whether an application and an agent find what they must in a state."""
    write(state, folder)
    try:
        check_after_crash(folder, SCENARIOS[name])
    except Exception as error:
        print(f"VIOLATION in {name}: {type(error).__name__}: {error}")
        return False
    finally:
        shutil.rmtree(folder)
    return True


def _digest(scenario: str, state: State) -> bytes:
    """Return what names the device's part of a state; the repository beside it is another machine's."""
    found = hashlib.sha256(scenario.encode())
    for name, (kind, data) in sorted(state.items()):
        if name.startswith("dev/"):
            found.update(f"{name}\0{kind}\0{len(data)}\0".encode() + data)
    return found.digest()


if __name__ == "__main__":
    sys.exit(main())
