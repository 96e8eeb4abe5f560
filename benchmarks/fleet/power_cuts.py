"""Power cuts in a soak that are not the model's fault, with a real agent whose boots are made up.

    python benchmarks/fleet/power_cuts.py N

The device is known to lose its power: its baseline was seen before. In a soak that does not end, the power
is cut N times at the same rate. Then the same on a device that is not known for it: the model is to blame.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeinfer.fleet.device.journal import Boots
from edgeinfer.fleet.device.phases import Phase
from tests.fleet.device.kit import NOW, Shelf, artifact_folder, assign, drive, make_agent
from tests.fleet.device.test_power_cuts import Rebooting, cut


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rolled_back = _cuts(wanted, usual=500)
    print(
        f"known to lose its power: {wanted} cuts in a soak, {'rolled back' if rolled_back else '0 rollbacks'}"
    )
    resets = _cuts(wanted, usual=0)
    print(f"not known for it: rolled back after {resets} resets")
    return 1 if rolled_back or not resets else 0


def _cuts(wanted: int, usual: int) -> int:
    """Cut the power so often; return after how many cuts it was rolled back, or 0."""
    folder = Path(tempfile.mkdtemp(prefix="power-cuts-"))
    shelf = Shelf(folder / "repo")
    options = {"soak_s": 1e9}
    shelf.desire(assign(shelf.publish(), 1))
    with make_agent(folder / "dev", shelf, probe=Rebooting()) as agent:
        drive(agent)
        boots = Boots(boot_id=agent.device.probe.boot_id(), unclean=usual, seconds=usual * 60.0 or 1e6)
        agent.device.save(attrs.evolve(agent.device.state, boots=boots))
    shelf.desire(assign(shelf.publish(version="2", artifact=artifact_folder(2.0)), 2), at=NOW + 1)
    agent = make_agent(folder / "dev", shelf, probe=Rebooting(), options=options)
    drive(agent, until=Phase.SOAKING)
    started = time.monotonic()
    for n in range(1, wanted + 1):
        cut(agent)
        agent = make_agent(folder / "dev", shelf, probe=Rebooting(), options=options)
        if agent.step() is not Phase.SOAKING:
            agent.close()
            return n
    agent.close()
    print(f"({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
