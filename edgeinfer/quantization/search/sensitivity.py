"""How much each layer costs in accuracy when it alone runs in integers.

Quantization noise of different layers is nearly independent, so the noise powers at the output nearly add up
(Zhou et al. 2018, "Adaptive Quantization for Deep Neural Network"): the table of single layers tells which
ones to give back to float first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.calibration.statistics import as_statistics
from edgeinfer.charts import Bar, bars
from edgeinfer.devices.profile import Target
from edgeinfer.display import Table, track
from edgeinfer.measure.inspection import inspect
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.qdq.marks import quantized_for, ranges_of
from edgeinfer.quantization.search.layer_noise import SwitchedModel
from edgeinfer.quantization.search.model_runs import run_outputs
from edgeinfer.quantization.search.output_score import Scorer
from edgeinfer.quantization.search.scored_tensors import scored_tensors
from edgeinfer.values import as_tuple

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]

Evaluate = Callable[[Model], float]
_LAYERS_SHOWN = 30


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

    def picture(self) -> str:
        """Return bars as inline SVG: the layers that cost most, the most sensitive first."""
        shown = self.layers[:_LAYERS_SHOWN]
        items = [
            Bar(name=layer.node, value=layer.sqnr_db, label=f"{layer.node} ({layer.op_type})")
            for layer in shown
        ]
        more = f", {len(shown)} of {len(self.layers)} layers" if len(shown) < len(self.layers) else ""
        return bars(items, title=f"SQNR with one layer in int8: short bars are sensitive{more}", unit="dB")

    def _repr_html_(self) -> str:
        return self.picture() + self.table().to_html()


def sensitivity(
    model: ModelSource,
    calibration: Any,
    *,
    target: Target | str | None = None,
    evaluate: Evaluate | None = None,
    samples: int = 16,
    method: str = "mse",
    ranges: Mapping[str, tuple[float, float]] | None = None,
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
        nodes: The names of the nodes to measure; None for all that would run in integers.
        progress: Show it; None in a terminal or notebook only.

    Raises:
        CalibrationError: There is no calibration, or it does not fit.
        PreconditionError: The model is quantized already.
    """
    loaded = Model.load(model)
    statistics = as_statistics(calibration, loaded.signature)
    dialect = attrs.evolve(dialect_of(target), costs=None)  # also layers that gain no time
    quantize = QuantizeStatic(calibration=statistics, target=dialect, method=method, ranges=ranges)
    whole = quantize.apply(loaded).model
    judged = list(itertools.islice(statistics, samples))
    scored = scored_tensors(loaded)
    tensors = None if scored.are_outputs else scored.names
    scorer = Scorer(loaded, run_outputs(loaded, judged, tensors=tensors), tensors)
    switched = SwitchedModel.of(whole, dialect) if quantized_for(whole.ir) is not None else None
    of_layer = switched.of_layer if switched is not None else {}
    layers = [node for node in loaded.ir.graph if node.name in of_layer]
    measured = [node for node in layers if nodes is None or node.name in nodes]
    macs = {cost.node: cost.macs for cost in inspect(loaded, shapes=_shapes_of(judged)).nodes}
    found = []
    single_layers = ([node.name or ""] for node in track(measured, "sensitivity", progress=progress))
    scores = switched.scores(single_layers, judged, scorer, tensors=tensors) if switched is not None else ()
    for node, score in zip(measured, scores, strict=True):
        name = node.name or ""
        metric = None
        if evaluate is not None:
            others = [str(other.name) for other in layers if other is not node]
            single = attrs.evolve(quantize, ranges=ranges_of(whole.ir), keep_float=others)
            metric = evaluate(single.apply(loaded).model)
        found.append(
            LayerSensitivity(
                node=name,
                op_type=node.op_type,
                sqnr_db=score.sqnr_db,
                rank_db=score.rank_db,
                metric=metric,
                macs=macs.get(name),
            )
        )
    return Sensitivity(
        target=dialect.name,
        layers=sorted(found, key=lambda layer: layer.sqnr_db),
        sqnr_db=scorer.score(run_outputs(whole, judged, tensors=tensors)).sqnr_db,
        metric_float=evaluate(loaded) if evaluate is not None else None,
        metric=evaluate(whole) if evaluate is not None else None,
        samples=len(judged),
    )


def _shapes_of(feeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds[0].items()}
