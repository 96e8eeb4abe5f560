"""Rollouts over N simulated devices in virtual time: the real planner, store and ingest.

Usage: python benchmarks/fleet/simulated.py [DEVICES] [--sites N]

20 % of the devices are offline at any time, 5 % of reports come twice, links are slow, clocks lie. First a
release that 40 % of the devices cannot install: how many are exposed before it is taken back. Then one that
5 % cannot install: how long it takes to reach the fleet. Says what a device, a round of the controller and
the planner cost in processor time, and the memory of it all.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

from edgeinfer.fleet import FailureRate, Stage
from edgeinfer.fleet.operator import commands, controller
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.inventory import DeviceRow, save_release

OLD, BAD, GOOD = "a" * 64, "b" * 64, "c" * 64
FAULTS = Faults(offline=0.2, delay_s=60, duplicate=0.05, lost_answer=0.02, lying_clock=0.05, slow=0.1)
STAGES = [Stage(count=100, quantile=0.7, soak="1h"), Stage(percent=20, quantile=0.7), Stage(percent=100)]


class Timed:
    """Calls a function, and keeps the processor time of each call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds, self.idle = function, [], []

    def __call__(self, *arguments: Any) -> Any:
        before = time.process_time()
        result = self.function(*arguments)
        self.seconds.append(time.process_time() - before)
        if not result:
            self.idle.append(self.seconds[-1])
        return result


def median_ms(seconds: list[float]) -> str:
    return f"{1e3 * sorted(seconds)[len(seconds) // 2]:.2f} ms (median of {len(seconds)})" if seconds else "-"


def roll_out(world: World, release: str) -> None:
    began, virtual = time.process_time(), world.now
    specification = Specification(stages=STAGES, gates=[FailureRate(max=0.15)])
    number = commands.draft(world.database, model="m", release=release, specification=specification)
    commands.start(world.database, number)
    plan = controller.plan = Timed(getattr(controller.plan, "function", controller.plan))  # type: ignore[assignment]
    tick = world.controller.tick = Timed(type(world.controller).tick.__get__(world.controller))  # type: ignore[method-assign]
    moving = (State.RUNNING, State.ROLLING_BACK)
    ended = world.run_until(lambda: commands.get(world.database, number).state not in moving, 30 * 86_400)
    used = time.process_time() - began
    with world.database.reading() as connection:
        tallies = store.load_tallies(connection, number)
    counts = tallies.counts(lambda _: True)
    hours = (world.now - virtual) / 3600
    print(
        f"{commands.get(world.database, number).state.value} after {hours:.1f} h of virtual time"
        f"{'' if ended else ' (not ended)'}; {counts.exposed} were exposed, {counts.failures} failed, "
        f"{sum(device.running == release for device in world.devices.values())} run it\n"
        f"  {used:.0f} s of processor time, {1e6 * used / len(world.devices):.0f} us "
        f"a device; {len(tallies.cells)} cells; planner {median_ms(plan.seconds)}, "
        f"a round without changes {median_ms(tick.idle)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("devices", nargs="?", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=50)
    arguments = parser.parse_args()
    count = arguments.devices
    world = World(seed=0, faults=FAULTS, release=OLD, poll_s=3_600, heartbeat_s=10**7, controller_s=900)
    world.quality |= {BAD: Quality(failed=0.4), GOOD: Quality(failed=0.05)}
    for digest, version in ((OLD, "1"), (BAD, "2"), (GOOD, "3")):
        save_release(world.database, digest=digest, model="m", version=version)
    began = time.process_time()
    world.add(
        DeviceRow(device=f"d{n}", device_class=f"class-{n % 4}", site=f"site-{n % arguments.sites}")
        for n in range(count)
    )
    world.run(7_200)
    print(
        f"{count} devices, enrolled and heard in {time.process_time() - began:.0f} s of processor time",
        flush=True,
    )
    for release in (BAD, GOOD):
        roll_out(world, release)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, devices and store together")


if __name__ == "__main__":
    main()
