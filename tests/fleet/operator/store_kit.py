"""Devices, reports and a rollout in a store: what the tests of the store share."""

from __future__ import annotations

from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.gates import FailureRate
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.fleet.operator.store.inventory import DeviceRow, add_devices, save_release

KEY = b"k" * 32
OLD, NEW = "a" * 64, "b" * 64


def report(device="d0", sequence=1, *, key=KEY, **fields) -> bytes:
    """Return a signed report of a device."""
    fields = {"incarnation": 1, "at": 0, "model": "m", "phase": Phase.IDLE, **fields}
    return Report(device=device, sequence=sequence, **fields).to_bytes(key)


def enroll(database, count=1):
    """Add the devices d0, d1, … to the store."""
    add_devices(
        database,
        [DeviceRow(device=f"d{n}", device_class="a", site="s", key=KEY, incarnation=1) for n in range(count)],
    )


def started(database, devices=40, **options):
    """Enroll devices, start a rollout from OLD to NEW over them, and return its number."""
    enroll(database, devices)
    for digest, version in ((OLD, "1"), (NEW, "2")):
        save_release(database, digest=digest, model="m", version=version)
    options.setdefault("stages", [Stage(count=20), Stage(percent=100)])
    gates = [FailureRate(max=0.14), *options.pop("more", ())]
    specification = Specification(gates=gates, on_fail="pause", **options)
    number = commands.draft(database, model="m", release=NEW, specification=specification)
    commands.start(database, number)
    return number
