"""kill -9, failing calls and power loss at every point: a few here, all in `benchmarks/fleet/`."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.fleet.device.crash_states import TRACED, replay, write
from tests.fleet.device.killing import available, check_after_crash, kill_points, run_injected
from tests.fleet.device.scenarios import SCENARIOS, prepare

pytestmark = [
    pytest.mark.skipif(not available(), reason="strace is not installed, or may not trace"),
    # Forked processes load no runtime here.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
KILLS, FAILURES, STATES = 3, 2, 25


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_the_old_or_the_new_set(scenario, tmp_path):
    template = tmp_path / "template"
    prepare(template, scenario)
    points = list(kill_points(template, tmp_path))
    rng = random.Random(scenario.name)
    injections = [f"{call}:signal=SIGKILL:when={n}" for call, n in rng.sample(points, KILLS)]
    injections += [f"{call}:error=ENOSPC:when={n}" for call, n in rng.sample(points, FAILURES)]
    injections += [f"{call}:error=EIO:when={n}+" for call, n in rng.sample(points, FAILURES)]
    for number, inject in enumerate(injections):
        folder = tmp_path / f"run-{number}"
        shutil.copytree(template, folder, symlinks=True)
        status = run_injected(folder, inject)
        assert status == 9 or "error" in inject, (inject, status)
        check_after_crash(folder, scenario)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_states_that_a_power_loss_may_leave(scenario, tmp_path):
    before, at, log = tmp_path / "before", tmp_path / "at", tmp_path / "log"
    prepare(before, scenario)
    shutil.copytree(before, at, symlinks=True)
    extra = ("-xx", "-s", "100000000", "-e", f"trace={TRACED}")
    assert run_injected(at, None, log=str(log), extra=extra) == 0
    rng = random.Random(scenario.name)
    calls = sum(1 for _ in replay(before, at, log))
    chosen = set(rng.sample(range(calls), STATES))
    for number, disk in enumerate(replay(before, at, log)):
        if number in chosen:
            state = tmp_path / "state"
            write(disk.after_power_loss(rng), state)
            check_after_crash(state, scenario)
            shutil.rmtree(state)
    # The model of the disk is right: with nothing lost it is what the run left.
    write(disk.after_power_loss(Keeping()), tmp_path / "kept")
    assert _contents(tmp_path / "kept") == _contents(at)


class Keeping(random.Random):
    def random(self) -> float:
        return 0.5

    def choice(self, values):
        return max(values)


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
