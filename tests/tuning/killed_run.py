"""A simulated run in a process of its own: a real journal, real syncs; only the work between is made up."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from edgeinfer.tuning.journal import Journal
from edgeinfer.tuning.planner import next_action
from edgeinfer.tuning.state import State
from tests.tuning.simulated import World, problem_of_kills, start


def main(path: Path, pause_s: float) -> None:
    of, world = problem_of_kills(), World()
    with Journal(path) as journal:
        if not journal.records:
            journal.append(start(of))
        while not State.of(journal.records).ended:
            record = world.do(next_action(State.of(journal.records), of))
            time.sleep(pause_s)
            journal.append(json.loads(json.dumps(record)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
