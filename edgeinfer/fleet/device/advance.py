"""Takes an update one phase further: which function does what in which phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from edgeinfer.fleet.device.device import Device, Interrupted
from edgeinfer.fleet.device.journal import Update
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.preparing import accepted, downloading, precheck
from edgeinfer.fleet.device.serving import activating, clean_up, rolling_back, soaking
from edgeinfer.fleet.device.trying import ready, shadow, staged, staging, verified
from edgeinfer.fleet.errors import GenerationError, InstallError

__all__ = ["advance"]

_Handler: TypeAlias = "Callable[[Device, Update], Update]"
_HANDLERS: Mapping[Phase, _Handler] = {
    Phase.ACCEPTED: accepted,
    Phase.PRECHECK: precheck,
    Phase.DOWNLOADING: downloading,
    Phase.VERIFIED: verified,
    Phase.STAGING: staging,
    Phase.STAGED: staged,
    Phase.SHADOW: shadow,
    Phase.READY: ready,
    Phase.ACTIVATING: activating,
    Phase.SOAKING: soaking,
    Phase.ROLLING_BACK: rolling_back,
}


def advance(device: Device) -> None:
    """Take the update of a device one phase further, if there is one under way.

    Every function may be called again after a crash at any point of it, or after an error of the disk.

    Raises:
        OSError: The disk of the device is full or broken.
    """
    device.waiting = ""
    update = device.state.update
    if update is None or update.phase.final:
        return
    try:
        after = _HANDLERS[update.phase](device, update)
    except Interrupted:  # to stop, or since the assignment changed; the next step sees to it
        return
    except (GenerationError, InstallError) as error:  # a bad disk: what was written is not there any more
        if update.phase.activated:
            raise
        after = device.enter(update, Phase.FAILED, "disk", str(error))
    device.state = attrs.evolve(device.state, update=after)
    if after.phase.final:
        clean_up(device)
