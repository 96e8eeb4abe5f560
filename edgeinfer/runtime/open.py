"""`load`: from an artifact to a Session, after checking that it fits this machine."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.manifest import Manifest
from edgeinfer.backends.protocol import Capabilities, DeviceInfo, LoadOptions, is_same_device
from edgeinfer.backends.registry import get_backend, require_available
from edgeinfer.errors import ArtifactFormatError, ArtifactMismatchError, InputError, SessionError
from edgeinfer.runtime.affinity import Pins
from edgeinfer.runtime.deadlines import Miss
from edgeinfer.runtime.realtime import Realtime
from edgeinfer.runtime.session import Session, SessionOptions
from edgeinfer.runtime.steady import (
    Measure,
    ProcessHold,
    Steady,
    realtime_measure,
    steady_of,
    with_spinning,
)
from edgeinfer.runtime.thread_hold import ThreadHold
from edgeinfer.runtime.wrapping import wrapping

__all__ = ["infer", "load"]


def load(
    artifact: Artifact | str | os.PathLike[str],
    *,
    device: str | None = None,
    options: object = None,
    pin_cores: int | Iterable[int] | None = None,
    deadline_ms: float | None = None,
    on_miss: Callable[[Miss], object] | None = None,
    steady: Steady | Mapping[str, object] | bool | None = None,
) -> Session:
    """Load an artifact.

    Args:
        artifact: An Artifact, or the directory that `Artifact.save` wrote; its files are verified first.
        device: Another device of the same backend than it was compiled for (portable artifacts only).
        options: The backend's options for this session: its frozen value, or a mapping of the same names.
        pin_cores: The cores that the runtime's threads, and every thread that calls the session, are pinned
            to until the session closes.
        deadline_ms: How long one `infer` may take; the session counts those that took longer.
        on_miss: Called with a `Miss` for each of them, in the thread that ran it, once its outputs are there.
        steady: Real-time priority, locked memory, a frozen heap and no spinning, each where this machine
            permits it: True for all, or a `Steady`. `Session.steady` says what holds, and why the rest does
            not.

    Raises:
        OptionsError: An option, `pin_cores`, `deadline_ms` or `steady` is refused.
        ArtifactError: It is damaged, or was built for another runtime or other hardware.
        BackendError: Its backend is not available here, or the device is not.
    """
    if isinstance(artifact, (str, os.PathLike)):
        opened = Artifact.open(artifact)
    elif isinstance(artifact, Artifact):
        opened = artifact
    else:
        raise ArtifactFormatError(
            "That is not an artifact.",
            expected="an Artifact, or the directory that Artifact.save wrote",
            found=type(artifact).__name__,
            hint="Compile a model first: ei.load(ei.compile(model)).",
        )
    manifest = opened.manifest
    backend = get_backend(manifest.backend)
    capabilities = require_available(backend)
    wanted = _wanted_device(manifest, device)
    _preflight(manifest, capabilities, wanted)
    session_options = SessionOptions.of(pin_cores=pin_cores, deadline_ms=deadline_ms, on_miss=on_miss)
    wanted_steady = steady_of(steady)
    holds: list[ThreadHold] = []
    if session_options.pin_cores:
        holds.append(Pins(session_options.pin_cores))
    measures: list[Measure] = []
    if wanted_steady is not None:
        options, spinning = with_spinning(options, wanted_steady.spins, capabilities)
        measures += [spinning] if spinning is not None else []
        if wanted_steady.realtime:
            measures.insert(0, realtime_measure())
            holds += [Realtime()] if measures[0].applied else []
    with contextlib.ExitStack() as loading:
        for hold in holds:
            loading.enter_context(hold.while_loading())
        loading.enter_context(wrapping(SessionError, f"{backend.name} could not load the artifact"))
        runner = backend.load(
            opened.payload, LoadOptions(device=wanted, options=options, signature=manifest.signature)
        )
    return Session(
        runner,
        manifest,
        device=wanted,
        options=session_options,
        holds=holds,
        steady=measures,
        process=ProcessHold(wanted_steady) if wanted_steady is not None else None,
    )


def infer(session: Session, inputs: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    """Run a session once; the same as `session.infer(inputs)`.

    Raises:
        SessionError: See `Session.infer`.
    """
    if not isinstance(session, Session):
        raise InputError(
            "That is not a session.",
            expected="a Session",
            found=type(session).__name__,
            hint="Load the artifact first: session = ei.load(artifact).",
        )
    return session.infer(inputs)


def _wanted_device(manifest: Manifest, device: str | None) -> str:
    wanted = manifest.device if device is None else device
    if manifest.kind == "device-bound" and not is_same_device(wanted, manifest.device):
        raise ArtifactMismatchError(
            "A device-bound artifact runs only on the device that it was compiled for.",
            expected=manifest.device,
            found=wanted,
            hint=f"Compile the model again with device={wanted!r}.",
        )
    return wanted


def _preflight(manifest: Manifest, capabilities: Capabilities, device: str) -> None:
    """Refuse an artifact whose requirements are not met here, before its runtime sees a byte of it."""
    info = capabilities.device(device) or DeviceInfo(name=device)
    facts = {**capabilities.facts, **info.facts}
    mismatches = [
        (fact, accepted, facts.get(fact, "unknown"))
        for fact, accepted in manifest.requires.items()
        if not any(fnmatch.fnmatchcase(facts.get(fact, "unknown"), pattern) for pattern in accepted)
    ]
    if mismatches:
        raise ArtifactMismatchError(
            f"The artifact was built for another {mismatches[0][0].replace('_', ' ')}.",
            where=f"backend {manifest.backend!r}, device {device or 'default'}",
            expected="; ".join(f"{fact} {' or '.join(accepted)}" for fact, accepted, _ in mismatches),
            found="; ".join(f"{fact} {found}" for fact, _, found in mismatches),
            hint="Compile the model on this machine, or install the runtime that it was built with.",
            facts={"mismatches": mismatches},
        )
