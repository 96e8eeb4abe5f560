"""Finding the dialect of a target."""

from __future__ import annotations

from edgeinfer.backends.base import QDQDialect
from edgeinfer.devices.profile import Target
from edgeinfer.errors import TargetError
from edgeinfer.registry import get_backend

__all__ = ["DEFAULT", "dialect_of"]

DEFAULT = "onnxruntime"


def dialect_of(target: Target | str | QDQDialect | None) -> QDQDialect:
    """Return the Q/DQ dialect of a target's backend; for None, that of ONNX Runtime.

    The dialects of edgeinfer's own backends are known on machines that lack the runtime, too.
    """
    if isinstance(target, QDQDialect):
        return target
    name = Target.parse(target).backend if target is not None else DEFAULT
    known = _known(name)
    if known is not None:
        return known
    dialect = get_backend(name).capabilities().dialect
    if dialect is None:
        raise TargetError(
            f"Backend {name!r} runs no quantized graphs.",
            where=f"target {target}",
            hint="Choose another target, or leave the model in float.",
        )
    return dialect


def _known(name: str) -> QDQDialect | None:
    if name == "onnxruntime":
        from edgeinfer.backends.onnxruntime_ import DIALECT as ONNXRUNTIME

        return ONNXRUNTIME
    if name == "openvino":
        from edgeinfer.backends.openvino_dialect import DIALECT as OPENVINO

        return OPENVINO
    if name == "tensorrt":
        from edgeinfer.backends.tensorrt_dialect import DIALECT as TENSORRT

        return TENSORRT
    return None
