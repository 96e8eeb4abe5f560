"""Sends the reports that wait, and one now and then while nothing happens."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import final

from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.reports import Metric
from edgeinfer.fleet.device.soak import served
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
            self._device.note("serving", metrics=self._serving())
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
            self._not_before = now + self._device.options.poll_s

    def _serving(self) -> dict[str, Metric]:
        device = self._device
        running = device.running()
        apps = read_apps(device.run_folder)[0]
        found: dict[str, Metric] = {"generation": float(running.number if running is not None else 0)}
        for name in running.models if running is not None else ():
            assert running is not None
            counts = served(apps, running.number, name)
            found[f"{name}.requests"], found[f"{name}.errors"] = float(counts.requests), float(counts.errors)
            for metric, histogram in (("latency_ms", counts.latency_ms), ("confidence", counts.confidence)):
                if histogram.count:
                    found[f"{name}.{metric}"] = histogram
        for name, sensor in (
            ("temperature_c", device.probe.temperature_c()),
            ("power_w", device.probe.power_w()),
        ):
            if sensor is not None:
                found[name] = sensor.value
        return found
