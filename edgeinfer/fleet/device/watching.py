"""Counts what the device's own baseline is made of: time, and applications that ended without closing."""

from __future__ import annotations

import time
from typing import final

import attrs

from edgeinfer.fleet.device.crash_rate import UNSAVED_S
from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.startup import check_running

__all__ = ["Watcher"]

_BASELINE_SAVE_S = 3_600.0  # flash wears; time that is not counted makes the baseline less tolerant, no more


@final
class Watcher:
    """Looks at the applications of a device, and counts its time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._looked = self._saved = time.monotonic()
        self._checked = 0

    def look(self) -> None:
        """Count; save it when it has become much, or something crashed."""
        device = self._device
        living, dead = read_apps(device.run_folder, remove_dead=True)
        boot_id = device.probe.boot_id()
        crashed = [app.generation for app in dead if app.boot_id == boot_id]
        soaking = self._count(crashed)
        now = time.monotonic()
        if crashed or now - self._saved >= (UNSAVED_S if soaking else _BASELINE_SAVE_S):
            self._saved = now
            device.save(device.state)
        current = device.generations.current()
        if not soaking and current != self._checked and any(a.failed_generation == current for a in living):
            self._checked = current
            check_running(device)

    def _count(self, crashed: list[int]) -> bool:
        """Add what happened since the last look to the soak, or to the baseline."""
        device, now = self._device, time.monotonic()
        seconds, self._looked = now - self._looked, now
        state, update = device.state, device.state.update
        if update is not None and update.phase is Phase.SOAKING:
            soak = attrs.evolve(
                update.soak,
                seconds=update.soak.seconds + seconds,
                crashes=update.soak.crashes + crashed.count(update.number),
            )
            device.state = attrs.evolve(state, update=attrs.evolve(update, soak=soak))
            return True
        boots = attrs.evolve(
            state.boots, seconds=state.boots.seconds + seconds, crashes=state.boots.crashes + len(crashed)
        )
        device.state = attrs.evolve(state, boots=boots)
        return False
