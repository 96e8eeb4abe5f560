"""How much each layer costs in accuracy when it alone runs in integers.

Quantization noise of different layers is nearly independent, so the noise powers at the output nearly add up
(Zhou et al. 2018, "Adaptive Quantization for Deep Neural Network"): the table of single layers tells which
ones to give back to float first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.display import Table, track
from edgeinfer.measure.inspection import inspect
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.placement import place
from edgeinfer.quantization.placement.pointwise import pointwise_as_gemm
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.quantization.qdq.marks import ranges_of
from edgeinfer.quantization.search.output_score import Scorer, run_outputs
from edgeinfer.values import as_tuple

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]

Evaluate = Callable[[Model], float]


@final
@attrs.frozen(kw_only=True)
class LayerSensitivity:
    """One layer, quantized alone.

    Attributes:
        node: The name of its ONNX node.
        op_type: Its operator.
        sqnr_db: SQNR of the model's worst output in dB, against float.
        rank_db: What ranks layers where feeds are few (`search.output_score`).
        metric: The caller's metric, if one was given.
        macs: The layer's multiply-accumulates, or None when a shape is not known.
    """

    node: str
    op_type: str
    sqnr_db: float
    rank_db: float
    metric: float | None = None
    macs: int | None = None


@final
@attrs.frozen(kw_only=True)
class Sensitivity:
    """The layers of a model, the most sensitive first.

    Attributes:
        target: What they were quantized for.
        layers: Sorted by `sqnr_db`, lowest first.
        sqnr_db: SQNR with all of them quantized.
        metric_float: The caller's metric of the float model, if one was given.
        metric: The same with all layers quantized.
        samples: How many samples the figures are from.
    """

    target: str
    layers: tuple[LayerSensitivity, ...] = attrs.field(converter=as_tuple)
    sqnr_db: float
    metric_float: float | None = None
    metric: float | None = None
    samples: int

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return attrs.asdict(self)

    def table(self) -> Table:
        """Return one row a layer."""
        has_metric = self.metric is not None
        rows = [
            (
                layer.node,
                layer.op_type,
                f"{layer.sqnr_db:.1f}",
                *((f"{layer.metric:.4f}",) if has_metric else ()),
                "?" if layer.macs is None else f"{layer.macs / 1e6:.2f}",
            )
            for layer in self.layers
        ]
        footer = f"all quantized: {self.sqnr_db:.1f} dB"
        if has_metric:
            footer += f", metric {self.metric:.4f} (float {self.metric_float:.4f})"
        return Table(
            title=f"Sensitivity for {self.target}, {self.samples} samples",
            columns=("node", "operator", "SQNR dB", *(("metric",) if has_metric else ()), "MMACs"),
            rows=rows,
            footer=footer,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def sensitivity(
    model: ModelSource,
    calibration: Any,
    *,
    target: Target | str | None = None,
    evaluate: Evaluate | None = None,
    samples: int = 16,
    method: str = "mse",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    on_target: bool = False,
    nodes: Collection[str] | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Quantize one layer at a time and measure what that does to the outputs.

    Args:
        model: A float model, simplified and with batch normalizations folded.
        calibration: Representative feeds; ranges come from all of them.
        target: Where the model will run; None for ONNX Runtime.
        evaluate: From a Model to a metric of which more is better; it is called once a layer.
        samples: How many of the feeds the outputs are compared on.
        method: How ranges are found; see `QuantizeStatic`.
        ranges: Ranges that are known already; see `QuantizeStatic`.
        on_target: Run the int8 models in the target's own runtime where that is here, not in ONNX Runtime.
        nodes: The names of the nodes to measure; None for all that would run in integers.
        progress: Show it; None in a terminal or notebook only.

    Raises:
        CalibrationError: There is no calibration, or it does not fit.
        PreconditionError: The model is quantized already.
    """
    where = target if on_target else None
    loaded = Model.load(model)
    feeds = as_calibration(calibration, loaded.signature)
    dialect = attrs.evolve(dialect_of(target), costs=None)  # also layers that gain no time
    quantize = QuantizeStatic(calibration=feeds, target=dialect, method=method, ranges=ranges)
    whole = quantize.apply(loaded).model
    layers = quantizable_layers(loaded, dialect)
    judged = list(feeds.take(samples))
    scorer = Scorer(loaded, run_outputs(loaded, judged))
    macs = {cost.node: cost.macs for cost in inspect(loaded, shapes=_shapes_of(judged)).nodes}
    known = ranges_of(whole.ir)
    found = []
    measured = [node for node in layers if nodes is None or node.name in nodes]
    for node in track(measured, "sensitivity", progress=progress):
        others = [str(other.name) for other in layers if other.name != node.name]
        single = attrs.evolve(quantize, ranges=known, keep_float=others)
        candidate = single.apply(loaded).model
        score = scorer.score(run_outputs(candidate, judged, where))
        found.append(
            LayerSensitivity(
                node=node.name or "",
                op_type=node.op_type,
                sqnr_db=score.sqnr_db,
                rank_db=score.rank_db,
                metric=evaluate(candidate) if evaluate is not None else None,
                macs=macs.get(node.name or ""),
            )
        )
    return Sensitivity(
        target=dialect.name,
        layers=sorted(found, key=lambda layer: layer.sqnr_db),
        sqnr_db=scorer.score(run_outputs(whole, judged, where)).sqnr_db,
        metric_float=evaluate(loaded) if evaluate is not None else None,
        metric=evaluate(whole) if evaluate is not None else None,
        samples=len(judged),
    )


def quantizable_layers(model: Model, dialect: QDQDialect) -> list[ir.Node]:
    """Return the nodes that `QuantizeStatic` would run in integers."""
    graph = model.copy_ir()
    prepare(graph)
    pointwise_as_gemm(graph, dialect)
    return [region.node for region in place(graph, dialect).regions]


def _shapes_of(feeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds[0].items()}
