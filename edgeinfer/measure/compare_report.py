"""`CompareReport`: how close a candidate is to its reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.charts import Line, Point, scatter
from edgeinfer.display import Table
from edgeinfer.feeds.shapes import InputShape, describe_inputs
from edgeinfer.measure.layers import LayerCloseness
from edgeinfer.numerics.closeness import Closeness
from edgeinfer.values import as_tuple

__all__ = ["DEFAULT_SQNR_DB", "CompareReport"]

DEFAULT_SQNR_DB = 20.0
_AS_GOOD_AS_EQUAL_DB = 120.0


@final
@attrs.frozen(kw_only=True)
class CompareReport:
    """How close a candidate is to its reference.

    Attributes:
        reference: What the reference is, for people.
        candidate: What the candidate is.
        reference_on: The backend and device that the reference's outputs are from.
        candidate_on: The same of the candidate.
        outputs: The closeness of each output, by the reference's name.
        layers: The closeness of each tensor that both graphs have, in topological order; for Models only.
        threshold_db: The SQNR below which a layer has gone wrong.
        feeds: How many feeds were compared.
        inputs: The shapes of the first of them, and where each size is from.
        notes: What else must be said.
    """

    reference: str
    candidate: str
    reference_on: str
    candidate_on: str
    outputs: Mapping[str, Closeness]
    layers: tuple[LayerCloseness, ...] = attrs.field(default=(), converter=as_tuple)
    threshold_db: float = DEFAULT_SQNR_DB
    feeds: int
    inputs: tuple[InputShape, ...] = attrs.field(default=(), converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def sqnr_db(self) -> float:
        """The SQNR of the worst output."""
        return min(closeness.sqnr_db for closeness in self.outputs.values())

    @property
    def first_bad_layer(self) -> LayerCloseness | None:
        """The first layer whose SQNR is below the threshold, in topological order."""
        return next((layer for layer in self.layers if layer.closeness.sqnr_db < self.threshold_db), None)

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values; infinite SQNR is None."""
        first = self.first_bad_layer
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "reference_on": self.reference_on,
            "candidate_on": self.candidate_on,
            "inputs": [each.to_dict() for each in self.inputs],
            "feeds": self.feeds,
            "threshold_db": self.threshold_db,
            "outputs": {name: _finite(attrs.asdict(value)) for name, value in self.outputs.items()},
            "layers": [
                {"tensor": layer.tensor, "node": layer.node, "op_type": layer.op_type}
                | _finite(attrs.asdict(layer.closeness))
                for layer in self.layers
            ],
            "first_bad_layer": first.node if first else None,
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Return one row an output, and the first layer that goes wrong."""
        rows = [(name, *_cells(value)) for name, value in self.outputs.items()]
        first = self.first_bad_layer
        lines = [f"{self.feeds} feed{'' if self.feeds == 1 else 's'} of {describe_inputs(self.inputs)}"]
        lines += self.notes
        if first is not None:
            lines.append(
                f"first layer below {self.threshold_db:g} dB: {first.op_type} {first.node!r} "
                f"(tensor {first.tensor!r}, {first.closeness.sqnr_db:.1f} dB)"
            )
        elif self.layers:
            lines.append(f"all {len(self.layers)} layers that both have are above {self.threshold_db:g} dB")
        return Table(
            title=f"{self.candidate} on {self.candidate_on} compared with "
            f"{self.reference} on {self.reference_on}",
            columns=("output", "SQNR dB", "cosine", "max abs", "mean abs", "top-1 agreement"),
            rows=rows,
            footer="; ".join(lines),
        )

    def layer_table(self) -> Table:
        """Return one row a layer."""
        rows = [
            (
                f"{'✗' if layer.closeness.sqnr_db < self.threshold_db else ' '} {layer.node}",
                layer.op_type,
                layer.tensor,
                *_cells(layer.closeness)[:-1],
            )
            for layer in self.layers
        ]
        return Table(
            title=f"Layers of {self.candidate} compared with {self.reference}",
            columns=("node", "type", "tensor", "SQNR dB", "cosine", "max abs", "mean abs"),
            rows=rows,
        )

    def __str__(self) -> str:
        return str(self.table())

    def picture(self) -> str:
        """Return the SQNR along the layers as inline SVG; a layer as good as equal is at 120 dB."""
        points = [
            Point(
                x=place,
                y=min(layer.closeness.sqnr_db, _AS_GOOD_AS_EQUAL_DB),
                label=f"{layer.tensor}: {layer.closeness.sqnr_db:.1f} dB",
                kind=4 if layer.closeness.sqnr_db < self.threshold_db else 0,
            )
            for place, layer in enumerate(self.layers)
        ]
        return scatter(
            points,
            title="Closeness along the layers",
            x="layer, in the order in which they are computed",
            y="SQNR in dB",
            path=[(point.x, point.y) for point in points],
            lines=[Line(label="gone wrong below", y=self.threshold_db)],
        )

    def _repr_html_(self) -> str:
        layers = self.picture() + self.layer_table().to_html() if self.layers else ""
        return self.table().to_html() + layers


def _cells(value: Closeness) -> tuple[str, ...]:
    top1 = "" if value.top1_agreement is None else f"{value.top1_agreement:.2%}"
    return (
        f"{value.sqnr_db:.1f}",
        f"{value.cosine:.6f}",
        f"{value.max_abs:.3g}",
        f"{value.mean_abs:.3g}",
        top1,
    )


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in fields.items()
    }
