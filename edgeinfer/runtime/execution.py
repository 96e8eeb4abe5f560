"""`execution`: what precision each layer really ran in, and what was asked for and not reached."""

from __future__ import annotations

from collections import Counter
from typing import final

import attrs

from edgeinfer.backends.reports import ExecutionReport, LayerExecution
from edgeinfer.display import Table
from edgeinfer.runtime.session import Session
from edgeinfer.values import as_tuple

__all__ = ["ExecutionSummary", "execution", "requested_but_not_reached", "requested_precision"]

# Operators that do the work. A quantized model has its Softmax and Reshape in float32 by intent, so only
# these say whether a precision was reached. Runtimes' own names for them are matched by these beginnings.
_HEAVY = (
    *("conv", "deconv", "nhwcconv", "fusedconv", "qlinearconv", "groupconvolution", "caskconvolution"),
    *("gemm", "fusedgemm", "qgemm", "matmul", "fusedmatmul", "qlinearmatmul", "dynamicquantizematmul"),
    *("matrixmultiply", "fullyconnected", "innerproduct", "lstm", "gru"),
    *("attention", "multiheadattention", "scaleddotproductattention"),
)
_REQUESTS = {"QuantizeStatic": "int8", "QuantizeDynamic": "int8", "ToFloat16": "float16"}
_FAMILIES = {
    "int8": frozenset({"int8", "uint8", "i8", "u8"}),
    "float16": frozenset({"float16", "f16", "fp16"}),
}


@final
@attrs.frozen(kw_only=True)
class ExecutionSummary:
    """What really ran, and what was asked for.

    Attributes:
        report: The runtime's own account, layer by layer.
        requested: The precision that the model was transformed to, or None.
        missed: The layers that do the work and ran in another precision than requested.
    """

    report: ExecutionReport
    requested: str | None = None
    missed: tuple[LayerExecution, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def devices(self) -> dict[str, int]:
        """The number of layers by device or execution provider."""
        return dict(Counter(layer.device for layer in self.report.layers))

    def describe(self) -> str:
        """Return text such as `24 int8, 3 float32`."""
        found = ", ".join(f"{count} {name or '?'}" for name, count in self.report.precisions.items())
        return found or "; ".join(self.report.notes) or "not told"

    def to_dict(self) -> dict[str, object]:
        """Return the account as JSON-compatible values."""
        return {
            "backend": self.report.backend,
            "requested": self.requested,
            "precisions": self.report.precisions,
            "devices": self.devices,
            "missed": [layer.name for layer in self.missed],
            "notes": list(self.report.notes),
            "layers": [attrs.asdict(layer) for layer in self.report.layers],
        }

    def table(self) -> Table:
        """Return one row for each operator type, device and precision."""
        groups = Counter((layer.op_type, layer.device, layer.precision) for layer in self.report.layers)
        rows = [
            (op, device, precision or "?", str(count)) for (op, device, precision), count in groups.items()
        ]
        lines = list(self.report.notes)
        if self.missed:
            names = ", ".join(layer.name for layer in self.missed[:3])
            more = f" and {len(self.missed) - 3} more" if len(self.missed) > 3 else ""
            lines.append(f"{self.requested} was asked for and not reached by {names}{more}")
        return Table(
            title=f"What ran in {self.report.backend}: {self.describe()}",
            columns=("type", "device", "precision", "layers"),
            rows=rows,
            footer="; ".join(lines),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def execution(session: Session, *, requested: str | None = None) -> ExecutionSummary:
    """Ask a session what really ran.

    Args:
        session: An open session.
        requested: The precision that was hoped for: `int8` or `float16`. None: that of the last transform
            in the artifact's history that changed the precision.

    Raises:
        SessionClosedError: The session is closed.
    """
    report = session.execution()
    wanted = requested or requested_precision(session)
    missed = requested_but_not_reached(report, wanted) if wanted else ()
    return ExecutionSummary(report=report, requested=wanted, missed=missed)


def requested_precision(session: Session) -> str | None:
    """Return the precision that the artifact's history asks for, or None for the model's own."""
    wanted = [_REQUESTS[entry.name] for entry in session.manifest.history if entry.name in _REQUESTS]
    return wanted[-1] if wanted else None


def requested_but_not_reached(report: ExecutionReport, precision: str) -> tuple[LayerExecution, ...]:
    """Return the layers that do the work (convolutions, matrix products, …) in another precision.

    A layer whose precision the runtime does not tell counts as not reached.
    """
    accepted = _FAMILIES.get(precision, frozenset({precision}))
    return tuple(
        layer
        for layer in report.layers
        if layer.op_type.lower().startswith(_HEAVY) and layer.precision not in accepted
    )
