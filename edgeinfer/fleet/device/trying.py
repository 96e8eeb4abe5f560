"""The phases in which a new model is tried beside the running one. Nothing changes for applications yet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from edgeinfer.fleet.device.device import Device
from edgeinfer.fleet.device.exchange import ShadowOrder, read_apps, write_order
from edgeinfer.fleet.device.generations import Generation, Pin
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.install import installed_folder, pin_of, read_installed
from edgeinfer.fleet.device.journal import Change, Update
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.preparing import lease_ended
from edgeinfer.fleet.device.release import Release, Variant
from edgeinfer.fleet.device.reports import Metric
from edgeinfer.fleet.device.staging import ShadowRequest, StagingRequest, StagingResult
from edgeinfer.fleet.device.verdicts import Verdict

__all__ = ["ready", "shadow", "staged", "staging", "staging_request", "verified"]


def verified(device: Device, update: Update) -> Update:
    """VERIFIED: count the attempt before anything is loaded, so that a crash cannot hide it."""
    over = lease_ended(device, update)
    if over is not None:
        return over
    number = device.state.last_number + 1
    # The number is taken for good: a generation that applications may have seen is never another one.
    return device.enter(
        update,
        Phase.STAGING,
        state=attrs.evolve(device.state, last_number=number),
        number=number,
        previous=device.committed_number(),
        attempts=update.attempts + 1,
    )


def staging(device: Device, update: Update) -> Update:
    """STAGING: load each new model in a child process, and hold it to its budget."""
    metrics: dict[str, Mapping[str, Metric]] = {}
    parts = list(_installed(device, update))
    for change, release, variant in parts:
        folder = device.root / installed_folder(release.digest, variant.name)
        found = device.checker.stage(staging_request(device, change.model, folder, variant), device.alive)
        # Under names of their own: what runs now is another release.
        metrics[change.model] = {f"staging_{name}": value for name, value in found.metrics.items()}
        if not found.verdict.ok:
            return device.enter(
                update,
                Phase.REJECTED,
                found.verdict.code,
                f"{change.model}: {found.verdict.detail}",
                metrics=metrics,
                blame=(change.release,),
            )
    return device.enter(update, Phase.STAGED, metrics=metrics)


def _installed(device: Device, update: Update) -> Iterator[tuple[Change, Release, Variant]]:
    """Yield what an update has installed. From here on no network is needed. Raises InstallError."""
    for change in update.changes:
        if change.release:
            yield change, *read_installed(device.root, change.release, change.variant)


def staging_request(device: Device, model: str, folder: Path, variant: Variant) -> StagingRequest:
    """Return what is to be checked of a variant that is installed in a folder."""
    return StagingRequest(
        model=model,
        artifact=folder / "artifact",
        golden=folder / "bundle" / variant.golden if variant.golden is not None else None,
        budget=variant.budget,
        runs=device.options.staging_runs,
        timeout_s=device.options.staging_timeout_s,
        silence_s=device.options.silence_s,
    )


def staged(device: Device, update: Update) -> Update:
    """STAGED: write the generation; applications do not see it yet."""
    over = lease_ended(device, update)
    if over is not None:
        return over
    device.generations.write(_generation(device, update))
    running = device.running()
    if running is not None and any(_shadowed(change, running) for change in update.changes):
        return device.enter(update, Phase.SHADOW)
    return device.enter(update, Phase.READY)


def _generation(device: Device, update: Update) -> Generation:
    """Return the pins of all models: those of the committed generation, with the changes."""
    previous = device.generations.read(update.previous) if update.previous else None
    models: dict[str, Pin] = dict(previous.models) if previous is not None else {}
    for change in update.changes:
        models.pop(change.model, None)
    for change, release, variant in _installed(device, update):
        models[change.model] = pin_of(release, variant, change.generation)
    return Generation(
        number=update.number,
        previous=update.previous,
        created_at=device.clock.now(),
        models=models,
        assignments=device.state.floors.generations,
    )


def _shadowed(change: Change, running: Generation) -> bool:
    return change.stage == "shadow" and bool(change.release) and change.model in running.models


def shadow(device: Device, update: Update) -> Update:
    """SHADOW: the new model sees the live inputs, the old one answers."""
    over = lease_ended(device, update)
    if over is not None:
        return over
    running, new = device.running(), device.generations.read(update.number)
    metrics: dict[str, Mapping[str, Metric]] = {}
    for change in update.changes:
        if running is None or not _shadowed(change, running):
            continue
        found = _compared(device, change, running, new.models[change.model])
        metrics[change.model] = found.metrics
        verdict = _shadow_verdict(found, device.options)
        if not verdict.ok:
            # Too few requests say nothing about the model; everything else does.
            phase = Phase.FAILED if verdict.code == "shadow_no_data" else Phase.REJECTED
            blame = (change.release,) if phase is Phase.REJECTED else ()
            what = f"{change.model}: {verdict.detail}"
            return device.enter(update, phase, verdict.code, what, metrics=metrics, blame=blame)
    device.report_again(attrs.evolve(update, code="compared"), metrics)
    agreement = {model: _number(found.get("shadow_agreement")) for model, found in metrics.items()}
    return device.enter(attrs.evolve(update, agreement=agreement), Phase.READY)


def _compared(device: Device, change: Change, running: Generation, pin: Pin) -> StagingResult:
    inputs = device.run_folder / "shadow" / change.model
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(parents=True)
    write_order(device.run_folder, ShadowOrder(model=change.model, generation=running.number))
    try:
        return device.checker.shadow(
            ShadowRequest(
                model=change.model,
                artifact=device.root / pin.folder / "artifact",
                reference=device.root / running.models[change.model].folder / "artifact",
                inputs=inputs,
                requests=device.options.shadow_requests,
                timeout_s=device.options.shadow_timeout_s,
            ),
            device.alive,
        )
    finally:
        write_order(device.run_folder, None)
        shutil.rmtree(inputs, ignore_errors=True)


def _shadow_verdict(found: StagingResult, options: AgentOptions) -> Verdict:
    """Judge the figures of a comparison."""
    if not found.verdict.ok:
        return found.verdict
    metrics = found.metrics
    requests = _number(metrics.get("shadow_requests"))
    if requests < options.shadow_requests:
        what = f"{requests:.0f} live requests where {options.shadow_requests} are needed"
        return Verdict.fail("shadow_no_data", what)
    errors, agreement = _number(metrics.get("shadow_errors")), _number(metrics.get("shadow_agreement"))
    if errors > options.max_error_rate * requests:
        return Verdict.fail("errors", f"the runtime failed in {errors:.0f} of {requests:.0f} live requests")
    if agreement < options.min_agreement:
        what = (
            f"{agreement:.1%} of the answers are those of the running model, not {options.min_agreement:.0%}"
        )
        return Verdict.fail("agreement", what)
    ours, theirs = metrics["shadow_latency_ms"], metrics["shadow_reference_ms"]
    assert isinstance(ours, Histogram)
    assert isinstance(theirs, Histogram)
    new, old = ours.quantile(0.99), theirs.quantile(0.99)
    if new is not None and old is not None and new > options.max_slowdown * old:
        what = f"p99 {new:.3g} ms where the running model takes {old:.3g} ms on the same inputs"
        return Verdict.fail("slowdown", what)
    return Verdict.passed()


def _number(metric: Metric | None) -> float:
    return metric if isinstance(metric, float) else 0.0


def ready(device: Device, update: Update) -> Update:
    """READY: an application may put the activation off, up to a deadline."""
    over = lease_ended(device, update)
    if over is not None:
        return over
    deferring = any(app.defer_until > time.monotonic() for app in read_apps(device.run_folder)[0])
    if deferring:
        if not update.deferred_until:
            # Kept in the journal, so that a restart does not begin the time again.
            deadline = device.clock.now() + int(device.options.defer_s)
            update = attrs.evolve(update, deferred_until=deadline)
        if device.clock.now() < update.deferred_until:
            return device.wait(update, "deferred", "an application asks not to be switched now")
    return device.enter(update, Phase.ACTIVATING)
