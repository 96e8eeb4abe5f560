"""Sends the reports that wait, and one now and then while nothing happens."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import final

from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.journal import Change, Update
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.serving_metrics import serving_metrics
from edgeinfer.fleet.errors import TransportError

__all__ = ["Outbox"]

_LOG = logging.getLogger("edgeinfer.agent")
_BATCH = 100


@final
class Outbox:
    """The reports of a device. A network that does not take them delays nothing else."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._not_before = 0.0
        self._last = time.monotonic()

    def work(self) -> None:
        """Send what waits; report how the models serve, if it is time."""
        now = time.monotonic()
        if now - self._last >= self._device.options.report_s:
            self._last = now
            self._report_serving()
        if now < self._not_before:
            return
        spool, transport = self._device.spool, self._device.transport
        try:
            while waiting := spool.first(_BATCH):
                count = min(transport.send([data for _, data in waiting]), len(waiting))
                if count > 0:
                    spool.remove(waiting[count - 1][0])
                if count < len(waiting):
                    break
        except (TransportError, sqlite3.Error, OSError) as error:
            _LOG.info("reports wait: %s", error)
            self._not_before = time.monotonic() + self._device.options.poll_s

    def _report_serving(self) -> None:
        """Report each model that runs: under the update that brought it, with the figures of now."""
        device = self._device
        running, update = device.running(), device.state.update
        if running is None or update is None or not update.phase.final:
            return  # an update reports by itself
        metrics = serving_metrics(device, read_apps(device.run_folder)[0], running.number)
        device.report(update, metrics)
        told = {change.model for change in update.changes}
        others = tuple(
            Change(
                model=name,
                generation=pin.assignment,
                release=pin.release,
                version=pin.version,
                start_before=0,
            )
            for name, pin in running.models.items()
            if name not in told
        )
        if others:
            device.report(Update(phase=Phase.COMMITTED, changes=others, code="serving"), metrics)
