"""Finding the dialect of a target."""

from __future__ import annotations

import attrs

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import TargetError
from edgeinfer.quantization.placement.pair_overflow import adds_pairs_in_int16

__all__ = ["DEFAULT", "dialect_of", "known_dialects"]

DEFAULT = "onnxruntime"


def known_dialects() -> tuple[QDQDialect, ...]:
    """Return the dialects of edgeinfer's own backends, which need no runtime to be known."""
    from edgeinfer.backends.onnxruntime_.backend import DIALECT as ONNXRUNTIME
    from edgeinfer.backends.openvino_.dialect import DIALECT as OPENVINO
    from edgeinfer.backends.tensorrt_.dialect import DIALECT as TENSORRT

    return ONNXRUNTIME, OPENVINO, TENSORRT


def dialect_of(target: Target | str | QDQDialect | None) -> QDQDialect:
    """Return the Q/DQ dialect of a target's backend, for this machine's kernels; None is ONNX Runtime.

    Raises:
        TargetError: There is no such target, or its backend runs no quantized graphs.
    """
    if isinstance(target, QDQDialect):
        return target
    parsed = Target.parse(target if target is not None else DEFAULT)
    name = parsed.backend
    dialect = next((known for known in known_dialects() if known.name == name), None)
    dialect = dialect or get_backend(name).capabilities().dialect
    if dialect is None:
        raise TargetError(
            f"Backend {name!r} runs no quantized graphs.",
            where=f"target {target}",
            hint="Choose another target, or leave the model in float.",
        )
    return attrs.evolve(dialect, pairs_in_int16=True) if adds_pairs_in_int16(parsed) else dialect
