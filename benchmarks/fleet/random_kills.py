"""kill -9 at random times, also of the agent that recovers.

    python benchmarks/fleet/random_kills.py N [SEED]

Each run is killed up to four times one after the other. After every kill an application must find exactly the
old or the new set of models, every file verified; at last the agent must come to the end. SIGTERM ends it
with what was found so far.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fleet.device.killing import check_after_crash
from tests.fleet.device.kit import running
from tests.fleet.device.scenarios import SCENARIOS, go_on, prepare


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    scratch = Path(
        tempfile.mkdtemp(prefix="random-kills-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    lengths = {}
    for name, scenario in SCENARIOS.items():
        prepare(scratch / name, scenario)
        shutil.copytree(scratch / name, scratch / "timed", symlinks=True)
        started = time.monotonic()
        go_on(scratch / "timed")
        lengths[name] = time.monotonic() - started
        shutil.rmtree(scratch / "timed")
    kills = runs = violations = recoveries = 0
    started = time.monotonic()
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    while kills < wanted and not ended:
        name = rng.choice(list(SCENARIOS))
        scenario, folder = SCENARIOS[name], scratch / "run"
        shutil.copytree(scratch / name, folder, symlinks=True)
        runs += 1
        try:
            for attempt in range(rng.randint(1, 4)):
                if not _killed(folder, rng.uniform(0, 1.2 * lengths[name])):
                    break
                kills += 1
                recoveries += attempt > 0
                found = running(folder / "dev")
                assert found in (scenario.old, scenario.new), found
            check_after_crash(folder, scenario)
        except Exception as error:
            # Two kills while it stages a model end that update, as they must.
            if "staging_crash" in (folder / "dev" / "state.json").read_text():
                found = running(folder / "dev")
                if found == scenario.old:
                    shutil.rmtree(folder)
                    continue
            violations += 1
            print(f"VIOLATION in {name}, run {runs}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    shutil.rmtree(scratch)
    print(
        f"{kills} kills in {runs} runs ({recoveries} of a recovering agent), {violations} violations, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if violations else 0


def _killed(folder: Path, after_s: float) -> bool:
    """Let a fork go on with the folder and kill it after a time; tell whether it was still running."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = 1
        try:
            go_on(folder)
            code = 0
        finally:
            os._exit(code)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
