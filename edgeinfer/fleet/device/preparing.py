"""The phases from an accepted assignment to models that are installed and verified. Nothing is loaded yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.install import install, installed_blobs
from edgeinfer.fleet.device.journal import Change, Update
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.release import Release, Variant
from edgeinfer.fleet.device.reports import Metric
from edgeinfer.fleet.device.selection import lease_over
from edgeinfer.fleet.device.verdicts import Verdict
from edgeinfer.fleet.errors import (
    DownloadError,
    FleetError,
    InstallError,
    NoVariantError,
    StorageError,
    TiedVariantsError,
)

__all__ = ["accepted", "downloading", "lease_ended", "precheck"]


def accepted(_: Device, update: Update) -> Update:
    """ACCEPTED: nothing was done yet."""
    return attrs.evolve(update, phase=Phase.PRECHECK)


def lease_ended(device: Device, update: Update) -> Update | None:
    """Give an update up that had to be activated before now; None where it may go on."""
    if not lease_over(update, device.clock.now()):
        return None
    return device.enter(update, Phase.FAILED, "lease", "it had to be activated earlier")


def _releases(device: Device, update: Update) -> Iterator[tuple[Change, Release, Variant]]:
    """Yield what an update brings, with the variant for this device. Raises FleetError."""
    for change in update.changes:
        if change.release:
            release = device.trust.release(change.model, change.version, change.release)
            yield change, release, release.choose(device.facts())


def precheck(device: Device, update: Update) -> Update:
    """PRECHECK: may it, and can it, be installed here?"""
    over = lease_ended(device, update)
    if over is not None:
        return over
    for change in update.changes:
        found = device.quarantined(change.release)
        if found is not None:
            return device.enter(update, Phase.REJECTED, "quarantined", f"{change.model}: {found.code}")
        if {(change.release, "*"), (change.release, device.device_class())} & device.trust.withdrawn:
            return device.enter(update, Phase.REJECTED, "withdrawn", f"{change.model} {change.version}")
    try:
        parts = list(_releases(device, update))
    except NoVariantError as error:
        return device.enter(update, Phase.REJECTED, "no_variant", str(error))
    except TiedVariantsError as error:
        return device.enter(update, Phase.REJECTED, "tied_variants", str(error))
    except FleetError as error:  # no network, metadata that is late or not to be trusted: not yet
        return device.wait(update, "metadata", str(error))
    for change, release, _ in parts:
        refusal = _refusal(device, change, release)
        if refusal is not None:
            return device.enter(update, Phase.REJECTED, refusal.code, refusal.detail)
    obstacle = _obstacle(device, update, parts)
    if obstacle is not None:
        return device.wait(update, obstacle.code, obstacle.detail)
    variants = {change.model: variant.name for change, _, variant in parts}
    changes = tuple(attrs.evolve(c, variant=variants.get(c.model, "")) for c in update.changes)
    return device.enter(update, Phase.DOWNLOADING, changes=changes)


def _refusal(device: Device, change: Change, release: Release) -> Verdict | None:
    """Return why a release is not for this device as it is now; the operator must act."""
    for app in read_apps(device.run_folder)[0]:
        status = app.models.get(change.model)
        if status is not None and status.accepts not in ("", release.interface):
            what = f"{change.model}: an application accepts {status.accepts}, not {release.interface}"
            return Verdict.fail("interface", what)
    history = device.state.history.get(change.model, ())
    if release.requires is not None and release.requires not in history:
        return Verdict.fail("stepping_stone", f"{change.model}: {release.requires} must be committed before")
    return None


def _obstacle(device: Device, update: Update, parts: list[tuple[Change, Release, Variant]]) -> Verdict | None:
    """Return what may pass: heat, a full disk, other processes, a clock that is not set."""
    if not device.clock.trusted and any(change.start_before for change in update.changes):
        return Verdict.wait("clock", "the clock is not believed, and the assignment ends at a time")
    needed, have = _needed_bytes(device, parts), device.probe.free_disk_bytes(device.root)
    if needed + device.options.keep_free_bytes > have:
        what = f"{needed / 1e6:.1f} MB are needed beside the running models, {have / 1e6:.1f} MB are free"
        return Verdict.wait("disk", what)
    available, temperature = device.probe.available_bytes(), device.probe.temperature_c()
    for change, _, variant in parts:
        budget = variant.budget
        if budget.peak_bytes is not None and available is not None and available < budget.peak_bytes:
            return Verdict.wait("memory", f"{change.model}: {available / 1e6:.0f} MB are available")
        limit = budget.temperature_c
        if limit is not None and temperature is not None and temperature.value >= limit:
            what = f"{change.model}: {temperature.source} is at {temperature.value:.0f} °C before it runs"
            return Verdict.wait("temperature", what)
    return None


def _needed_bytes(device: Device, parts: list[tuple[Change, Release, Variant]]) -> int:
    """Return what an update takes beside what is kept to go back: what is fetched, and what is installed."""
    blobs = {b.digest: b for _, release, variant in parts for b in release.blobs_for(variant)}
    fetched = sum(blob.size for blob in blobs.values() if not device.blobs.has(blob.digest))
    return fetched + sum(b.size for _, release, variant in parts for b in release.blobs_for(variant))


def downloading(device: Device, update: Update) -> Update:
    """DOWNLOADING: bring the files, put them together, verify them."""
    over = lease_ended(device, update)
    if over is not None:
        return over
    metrics: dict[str, Mapping[str, Metric]] = {}
    try:
        parts = list(_releases(device, update))
        for change, release, variant in parts:
            bases = _bases(device, change, release)
            fetched = device.fetcher.fetch(
                release.blobs_for(variant), release.deltas, lambda *_: device.alive(), bases=bases
            )
            metrics[change.model] = {
                "download_bytes": float(fetched.moved_bytes),
                "files_by_delta": float(len(fetched.by_delta)),
            }
    except StorageError as error:
        return device.wait(update, "disk", str(error))
    except DownloadError as error:  # the network or a mirror; it never counts against the release
        return device.wait(update, "download", str(error))
    except FleetError as error:
        return device.wait(update, "metadata", str(error))
    for change, release, variant in parts:
        try:
            install(device.root, release, variant, device.blobs)
        except OSError as error:
            return device.wait(update, "disk", f"{change.model}: {error}")
        except InstallError as error:
            damaged = [b.path for b in release.blobs_for(variant) if not device.blobs.verify(b.digest)]
            if damaged:  # a bad disk, not a bad release: they are fetched again
                return device.wait(update, "disk", str(error))
            what = f"{change.model}: {error}"
            return device.enter(update, Phase.REJECTED, "artifact", what, blame=(change.release,))
    return device.enter(update, Phase.VERIFIED, metrics=metrics)


def _bases(device: Device, change: Change, release: Release) -> dict[str, Path]:
    """Return the installed files of the running release from which deltas start, by digest."""
    wanted = {delta.base for delta in release.deltas}
    running = device.running()
    pin = running.models.get(change.model) if running is not None else None
    if pin is None or not wanted:
        return {}
    try:
        return {digest: path for digest, path in installed_blobs(device.root, pin) if digest in wanted}
    except InstallError:  # damaged: then without deltas
        return {}
