"""Finding the dialect of a target."""

from __future__ import annotations

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import TargetError

__all__ = ["DEFAULT", "dialect_of", "known_dialects"]

DEFAULT = "onnxruntime"


def known_dialects() -> tuple[QDQDialect, ...]:
    """Return the dialects of edgeinfer's own backends, which need no runtime to be known."""
    from edgeinfer.backends.onnxruntime_.backend import DIALECT as ONNXRUNTIME
    from edgeinfer.backends.openvino_.dialect import DIALECT as OPENVINO
    from edgeinfer.backends.tensorrt_.dialect import DIALECT as TENSORRT

    return ONNXRUNTIME, OPENVINO, TENSORRT


def dialect_of(target: Target | str | QDQDialect | None) -> QDQDialect:
    """Return the Q/DQ dialect of a target's backend; for None, that of ONNX Runtime.

    Raises:
        TargetError: There is no such target, or its backend runs no quantized graphs.
    """
    if isinstance(target, QDQDialect):
        return target
    name = Target.parse(target).backend if target is not None else DEFAULT
    for known in known_dialects():
        if known.name == name:
            return known
    dialect = get_backend(name).capabilities().dialect
    if dialect is None:
        raise TargetError(
            f"Backend {name!r} runs no quantized graphs.",
            where=f"target {target}",
            hint="Choose another target, or leave the model in float.",
        )
    return dialect
