"""A rollout over N simulated devices in virtual time: the real planner, store and ingest.

Usage: python benchmarks/fleet/simulated.py [DEVICES]

20 % of the devices are offline at any time, 5 % of reports come twice, links are slow, clocks lie; 5 % of
the devices fail. Says how long the rollout took in virtual time, and what one device and one round of the
controller cost in processor time.
"""

from __future__ import annotations

import argparse
import time

from edgeinfer.fleet import FailureRate, Stage
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store.inventory import DeviceRow, save_release

OLD, NEW = "a" * 64, "b" * 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("devices", nargs="?", type=int, default=10_000)
    count = parser.parse_args().devices
    faults = Faults(offline=0.2, delay_s=60, duplicate=0.05, lost_answer=0.02, lying_clock=0.05, slow=0.1)
    world = World(seed=0, faults=faults, release=OLD, poll_s=3_600, heartbeat_s=10**7, controller_s=900)
    world.quality[NEW] = Quality(failed=0.05)
    for digest, version in ((OLD, "1"), (NEW, "2")):
        save_release(world.database, digest=digest, model="m", version=version)
    began = time.process_time()
    world.add(
        [
            DeviceRow(device=f"d{n}", device_class=f"class-{n % 4}", site=f"site-{n % 500}")
            for n in range(count)
        ]
    )
    world.run(7_200)
    stages = [Stage(count=100, quantile=0.7, soak="1h"), Stage(percent=10, quantile=0.7), Stage(percent=100)]
    specification = Specification(stages=stages, gates=[FailureRate(max=0.15)])
    number = commands.draft(world.database, model="m", release=NEW, specification=specification)
    commands.start(world.database, number)
    ready, start = time.process_time(), world.now
    print(f"{count} devices, enrolled and started in {ready - began:.0f} s of processor time", flush=True)

    rounds: list[float] = []
    tick = world.controller.tick

    def timed() -> int:
        before = time.process_time()
        changed = tick()
        if not changed:  # a round that has nothing to do: the planner and what it reads
            rounds.append(time.process_time() - before)
        return changed

    world.controller.tick = timed  # type: ignore[method-assign]
    ended = world.run_until(
        lambda: commands.get(world.database, number).state is not State.RUNNING, 30 * 86_400
    )
    used = time.process_time() - ready
    state = commands.get(world.database, number).state.value
    idle = sorted(rounds) or [float("nan")]
    print(
        f"{state} after {(world.now - start) / 3600:.1f} h of virtual time{'' if ended else ' (not ended)'}; "
        f"{used:.0f} s of processor time, {1e6 * used / count:.0f} us a device; "
        f"a round without changes {1e3 * idle[len(idle) // 2]:.1f} ms (median of {len(rounds)})"
    )
    running = sum(device.running == NEW for device in world.devices.values())
    print(f"{running} of {count} devices run the new release")


if __name__ == "__main__":
    main()
