"""Int8 where it gains, float16 where it does not: for devices that execute both."""

from __future__ import annotations

import time
from typing import final

import attrs

from edgeinfer.backends.registry import get_backend, reference_backend
from edgeinfer.devices.profile import Target
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.transforms.contract import ReportBuilder, TransformResult
from edgeinfer.transforms.to_float16 import ToFloat16

__all__ = ["Int8OrFloat16"]


@final
@attrs.frozen
class Int8OrFloat16:
    """Quantize for a device that has float16, too, and convert to float16 what does not gain from int8.

    A Transform. Int8 is kept when it was measured to be faster than float, or when it cannot be measured here
    but is known to pay on the target. The report has the name of what was done.

    Args:
        quantize: Makes the model int8; its target is the device.
        known_to_pay: Int8 is known to pay on the target, so that it need not be measured.
    """

    quantize: QuantizeInt8
    known_to_pay: bool = attrs.field(default=False, kw_only=True)

    def apply(self, model: Model, /) -> TransformResult:
        """Apply one of the two; see the class."""
        started = time.perf_counter()
        notes = ReportBuilder()
        if self.known_to_pay or _is_here(self.quantize.target):
            result = self.quantize.apply(model)
            measured = "speedup" in result.report.data
            if result.report.modified and (measured or self.known_to_pay):
                return result
            notes.include(result.report, applied=False)
            if result.report.modified:
                notes.skip("", f"the gain of int8 on {self.quantize.target} could not be measured")
        else:
            notes.skip("", f"{self.quantize.target} is not here, so that int8 cannot be measured on it")
        after, half = ToFloat16().apply(model)
        notes.include(half)
        notes.note("float16 in place of int8")
        return TransformResult(after, notes.finish(half.name, model, after, started, config=half.config))


def _is_here(target: Target | str | None) -> bool:
    parsed = Target.parse(target or reference_backend().name)
    found = get_backend(parsed.backend).capabilities()
    names = [device.name for device in found.devices]
    return found.available and (
        not parsed.device or any(name.split(".")[0] == parsed.device.split(".")[0] for name in names)
    )
