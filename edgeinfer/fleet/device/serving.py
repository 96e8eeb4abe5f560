"""The phases in which the new models serve: the switch, the soak, and the way back."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs

from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.generations import Pin
from edgeinfer.fleet.device.install import read_installed
from edgeinfer.fleet.device.journal import State, Update
from edgeinfer.fleet.device.local_files import fsync_folder
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.preparing import lease_ended
from edgeinfer.fleet.device.release import Variant
from edgeinfer.fleet.device.serving_metrics import serving_metrics
from edgeinfer.fleet.device.soak import Evidence, judge
from edgeinfer.fleet.device.trying import staging_request
from edgeinfer.fleet.device.verdicts import Verdict
from edgeinfer.fleet.errors import GenerationError, InstallError

__all__ = ["activating", "clean_up", "rolling_back", "settled", "soaking", "with_history"]

_MAX_HISTORY = 40  # digests and versions
_TOLD_BYTES = 8 << 20  # more than what applications tell


def activating(device: Device, update: Update) -> Update:
    """ACTIVATING: the rename, unless a crash came after it."""
    if device.generations.current() == update.number:
        fsync_folder(device.root)  # the crash may have come between the rename and its sync
        return device.enter(update, Phase.SOAKING)
    over = lease_ended(device, update)
    if over is not None:
        return over
    try:
        device.generations.verify(update.number)
    except GenerationError as error:  # a bad disk since it was staged
        return device.enter(update, Phase.FAILED, "disk", str(error))
    device.generations.activate(update.number)
    return device.enter(update, Phase.SOAKING)


def soaking(device: Device, update: Update) -> Update:
    """SOAKING: the new models serve, and every limit is watched."""
    try:
        variants = _variants(device, update)
    except (GenerationError, InstallError) as error:
        return device.enter(update, Phase.ROLLING_BACK, "damaged", str(error))
    apps = read_apps(device.run_folder)[0]
    evidence = Evidence(
        number=update.number,
        record=update.soak,
        boots=device.state.boots,
        apps=apps,
        budgets={name: variant.budget for name, (_, variant) in variants.items()},
        grown_bytes=max((a.grown_bytes for a in apps if a.generation == update.number), default=0),
        temperature=device.probe.temperature_c(),
        power=device.probe.power_w(),
        now=time.monotonic(),
        disk_full=bool(apps) and device.probe.free_disk_bytes(device.run_folder) < _TOLD_BYTES,
    )
    verdict = judge(evidence, device.options)
    if verdict.ok and verdict.code == "unobserved":
        verdict = _self_test(device, variants)
    if verdict.ok is None:
        return update
    metrics = serving_metrics(device, apps, update.number)
    if not verdict.ok:
        return device.enter(update, Phase.ROLLING_BACK, verdict.code, verdict.detail, metrics=metrics)
    device.generations.commit(update.number)
    state = with_history(settled(device.state, update), update)
    return device.enter(update, Phase.COMMITTED, verdict.code, verdict.detail, metrics=metrics, state=state)


def _variants(device: Device, update: Update) -> dict[str, tuple[Pin, Variant]]:
    """Return what the update brought, by model."""
    models = device.generations.read(update.number).models
    pins = {c.model: models[c.model] for c in update.changes if c.model in models}
    return {
        name: (pin, read_installed(device.root, pin.release, pin.variant)[1]) for name, pin in pins.items()
    }


def _self_test(device: Device, variants: Mapping[str, tuple[Pin, Variant]]) -> Verdict:
    """Where no application asked enough to judge by, ask the models once more: no data is no pass."""
    for name, (pin, variant) in variants.items():
        found = device.checker.stage(
            staging_request(device, name, device.root / pin.folder, variant), device.alive
        )
        if not found.verdict.ok:
            return found.verdict
    return Verdict.passed("self_test", "too few requests were served to judge by; its own test was passed")


def rolling_back(device: Device, update: Update) -> Update:
    """ROLLING_BACK: the rename back, unless there is nothing to go back to, or it is damaged."""
    code, detail = update.code, update.detail
    blame = () if code in ("withdrawn", "damaged", "superseded") else update.releases
    if update.previous == 0:
        what = f"{detail}; there is nothing to go back to, and it serves on"
        return device.enter(update, Phase.DEGRADED, code, what, blame=blame)
    if device.generations.current() == update.previous:
        fsync_folder(device.root)
        return device.enter(update, Phase.ROLLED_BACK, code, detail, blame=blame)
    try:
        device.generations.verify(update.previous)
    except GenerationError as error:
        what = f"{detail}; the generation before is damaged: {error}"
        return device.enter(update, Phase.DEGRADED, code, what, blame=blame)
    device.generations.activate(update.previous)
    return device.enter(update, Phase.ROLLED_BACK, code, detail, blame=blame)


def clean_up(device: Device) -> None:
    """Remove what is no longer needed after an update: all but what runs and what it can go back to."""
    running = device.running()
    if running is None:
        return
    keep = {running.number, running.previous} - {0}
    update = device.state.update
    if update is not None and not update.phase.final:
        return
    device.generations.collect(frozenset(keep))
    device.blobs.collect(())


def settled(state: State, update: Update) -> State:
    """Return the journal with the counts of a soak that is over in the device's own baseline.

    What went down in a soak that was rolled back for it is left out: it was the model's.
    """
    boots, soak = state.boots, update.soak
    return attrs.evolve(
        state,
        boots=attrs.evolve(
            boots,
            unclean=boots.unclean + soak.unclean,
            crashes=boots.crashes + soak.crashes,
            seconds=boots.seconds + soak.seconds,
        ),
    )


def with_history(state: State, update: Update) -> State:
    """Return the journal in which the releases of an update are committed: stepping stones for later ones."""
    history = dict(state.history)
    for change in update.changes:
        if change.release:
            known = (*history.get(change.model, ()), change.release, change.version)
            history[change.model] = tuple(dict.fromkeys(known))[-_MAX_HISTORY:]
    return attrs.evolve(state, history=history)
