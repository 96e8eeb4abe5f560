"""How the models of a device serve, in figures: for the report of a soak, and now and then after it."""

from __future__ import annotations

from edgeinfer.fleet.device.device import ByModel, Device
from edgeinfer.fleet.device.exchange import AppStatus
from edgeinfer.fleet.device.reports import Metric
from edgeinfer.fleet.device.soak import served

__all__ = ["serving_metrics"]


def serving_metrics(device: Device, apps: tuple[AppStatus, ...], number: int) -> ByModel:
    """Return the figures of each model of the running generation, as far as there are any.

    `latency_ms` and `confidence` are distributions; `errors` and `deadline_misses` are shares of `requests`;
    `peak_bytes` is the memory of the largest application that serves the model; `agreement` is what a shadow
    found before; `temperature_c` and `power_w` are of the device.

    Args:
        device: The device.
        apps: What its applications tell.
        number: The generation that runs.
    """
    running, update = device.running(), device.state.update
    agreement = update.agreement if update is not None and update.number == number else {}
    sensors: dict[str, Metric] = {}
    readings = {"temperature_c": device.probe.temperature_c(), "power_w": device.probe.power_w()}
    for name, sensor in readings.items():
        if sensor is not None:
            sensors[name] = sensor.value
    found = {}
    for model in running.models if running is not None else ():
        counts = served(apps, number, model)
        total = counts.requests + counts.errors
        metrics: dict[str, Metric] = {**sensors, "requests": float(total)}
        if total:
            metrics["errors"] = counts.errors / total
            metrics["deadline_misses"] = counts.misses / total
        memory = [app.rss_bytes for app in apps if app.generation == number and model in app.models]
        if max(memory, default=0):
            metrics["peak_bytes"] = float(max(memory))
        if model in agreement:
            metrics["agreement"] = agreement[model]
        for name, histogram in (("latency_ms", counts.latency_ms), ("confidence", counts.confidence)):
            if histogram.count:
                metrics[name] = histogram
        found[model] = metrics
    return found
