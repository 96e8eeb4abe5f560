"""What would make a model fit a device, by estimate: a transform, or another power mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import attrs

from edgeinfer.devices.device_profile import DeviceProfile
from edgeinfer.estimate.estimate import Estimate
from edgeinfer.estimate.estimating import Source, estimate_work
from edgeinfer.estimate.workload import Workload

__all__ = ["Remedy", "remedies"]

# How much of the products pruning may leave; below that few models keep their accuracy without retraining.
_KEEP = (0.8, 0.6, 0.5)
_TRANSFORMS = {"float16": "ToFloat16()", "int8": "QuantizeInt8(calibration=...)"}


@final
@attrs.frozen(kw_only=True)
class Remedy:
    """A change, and what the model would need then.

    Attributes:
        change: Transforms to apply, as code; or a power mode of the device.
        estimate: What it would need.
    """

    change: str
    estimate: Estimate


def remedies(work: Workload, source: Source, precisions: frozenset[str]) -> Iterator[Remedy]:
    """Go through the changes, the least invasive first: power modes of the device, precisions, pruning.

    Args:
        work: What the model asks for as it is.
        source: What to estimate by.
        precisions: What the device executes fast.
    """
    if isinstance(source, DeviceProfile):
        for mode in source.modes:
            if mode != source.mode:
                other = attrs.evolve(source.in_mode(mode), name=f"{source.name}@{mode}")
                yield Remedy(change=f"power mode {mode}", estimate=estimate_work(work, other))
    for keep in (None, *_KEEP):
        for precision in ("", "float16", "int8"):
            if precision and (precision == work.precision or precision not in precisions):
                continue
            if precision == "float16" and work.precision == "int8":
                continue
            changed = work.assume(precision) if precision else work
            changed = changed.pruned(keep) if keep is not None else changed
            steps = [f"PruneChannels(keep_macs={keep:g}, calibration=...)"] if keep is not None else []
            steps += [_TRANSFORMS[precision]] if precision else []
            if steps:
                yield Remedy(change=", ".join(steps), estimate=estimate_work(changed, source))
