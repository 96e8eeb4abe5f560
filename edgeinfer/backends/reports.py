"""What a runtime tells of a run: which layers, where, in what precision, how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import attrs
import numpy as np

from edgeinfer.values import as_tuple

if TYPE_CHECKING:
    from edgeinfer.display import Table

__all__ = ["ExecutionReport", "LayerExecution", "LayerTime", "typical_us"]


@final
@attrs.frozen(kw_only=True)
class LayerExecution:
    """One layer as the runtime executed it.

    Attributes:
        name: The runtime's name of the layer.
        op_type: The runtime's type of the layer.
        device: Where it ran: an execution provider or a device.
        precision: The precision of its computation: `float32`, `int8`, … or `unknown`.
        onnx_nodes: The names of the ONNX nodes that it implements, as far as the runtime tells.
        kernel: The implementation that the runtime chose, if it tells.
    """

    name: str
    op_type: str
    device: str = ""
    precision: str = ""
    onnx_nodes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    kernel: str = ""


@final
@attrs.frozen(kw_only=True)
class LayerTime:
    """How long the runtime took for one layer, by its own profiler.

    Attributes:
        name: The runtime's name of the layer.
        op_type: The runtime's type of the layer.
        us: Microseconds of one run: `typical_us` of several.
        onnx_names: What it implements, as far as the runtime tells: names of ONNX nodes, or of the tensors
            that they make.
        kernel: The implementation that the runtime chose, if it tells.
    """

    name: str
    op_type: str
    us: float
    onnx_names: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    kernel: str = ""


def typical_us(times: Sequence[float]) -> float:
    """Return the mean of the fastest quarter: other work slows runs down, and profilers round to 1 µs."""
    fastest = sorted(times)[: (len(times) + 3) // 4]
    return float(np.mean(fastest)) if fastest else 0.0


@final
@attrs.frozen(kw_only=True)
class ExecutionReport:
    """What really ran, by the runtime's own account.

    Attributes:
        backend: The backend's name.
        layers: In execution order where the runtime keeps it.
        notes: What else must be said, such as a precision that was asked for and not reached.
    """

    backend: str
    layers: tuple[LayerExecution, ...] = attrs.field(converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def count(self, precision: str) -> int:
        """Return how many layers ran in that precision."""
        return sum(layer.precision == precision for layer in self.layers)

    @property
    def precisions(self) -> dict[str, int]:
        """The number of layers by precision."""
        found = [layer.precision for layer in self.layers]
        return {precision: found.count(precision) for precision in dict.fromkeys(found)}

    def to_dict(self) -> dict[str, object]:
        """Return the account as JSON-compatible values."""
        return {**attrs.asdict(self), "precisions": self.precisions}

    def table(self) -> Table:
        """Return one row a layer."""
        from edgeinfer.display import Table

        summary = ", ".join(f"{count} {precision or '?'}" for precision, count in self.precisions.items())
        rows = [
            (layer.name, layer.op_type, layer.device, layer.precision, layer.kernel) for layer in self.layers
        ]
        return Table(
            title=f"What ran in {self.backend}: {summary}",
            columns=("layer", "type", "device", "precision", "kernel"),
            rows=rows,
            footer="; ".join(self.notes),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()
