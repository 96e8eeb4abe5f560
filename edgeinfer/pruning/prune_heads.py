"""`PruneHeads`: fewer attention heads."""

from __future__ import annotations

from typing import Any, ClassVar, final

import attrs
import onnx_ir as ir

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.pruning import options
from edgeinfer.pruning.budget.criteria import CRITERIA, Criterion
from edgeinfer.pruning.budget.settings import Budget, Settings
from edgeinfer.pruning.engine import prune_structured
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.values import as_frozenset

__all__ = ["PruneHeads"]


@final
@attrs.frozen
class PruneHeads(GraphTransform):
    """Remove the attention heads that the outputs miss least, and refit the projections behind them.

    A head is a batch position of the products of attention, as exporters write it (Reshape, Transpose,
    MatMul, Softmax, MatMul); it goes with its rows of the query, key, value and output projections.

    Attributes:
        keep: The part of all heads to keep; layers that need fewer heads give up more.
        calibration: A re-iterable of feeds. Without one: magnitude, and nothing is refitted.
        keep_nodes: Names of layers that keep all their heads and are not refitted.
        criterion: How the heads of one layer are ranked.
        measure: On how many samples the error of the outputs is measured.
        max_columns: How many positions the moments are taken from.
        ridge: How strongly refitted weights are drawn to the present ones. None: chosen on held-out feeds.
        seed: For the random criterion.
        target: Taken for the sake of `optimize`; heads have no preferred multiple.
        progress: Show progress. None: in a terminal or a notebook.
    """

    idempotent: ClassVar[bool] = False

    keep: float = attrs.field(default=0.75, validator=options.number(above=0, at_most=1))
    calibration: Any = attrs.field(default=None, kw_only=True, eq=False, validator=options.feeds)
    keep_nodes: frozenset[str] = attrs.field(default=(), kw_only=True, converter=as_frozenset)
    criterion: Criterion = attrs.field(
        default="second_order",
        kw_only=True,
        validator=options.one_of(*CRITERIA),
    )
    measure: int = attrs.field(default=48, kw_only=True, validator=options.number(at_least=0, whole=True))
    max_columns: int = attrs.field(
        default=24_000, kw_only=True, validator=options.number(at_least=100, whole=True)
    )
    ridge: float | None = attrs.field(
        default=None, kw_only=True, validator=options.number(at_least=0, optional=True)
    )
    seed: int = attrs.field(default=0, kw_only=True, validator=options.number(at_least=0, whole=True))
    target: Target | str | None = attrs.field(default=None, kw_only=True, validator=options.target)
    progress: bool | None = attrs.field(default=None, kw_only=True)

    names_layers = True
    reports_on = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Prune the head groups."""
        prune_structured(
            model,
            report,
            Settings(
                kind="head",
                budget=Budget(metric="channels", keep=self.keep),
                feeds=None
                if self.calibration is None
                else as_calibration(self.calibration, Signature.of_graph(model.graph)),
                criterion=self.criterion,
                multiple=1,
                measure=self.measure,
                max_columns=self.max_columns,
                ridge=self.ridge,
                seed=self.seed,
                progress=self.progress,
                keep_nodes=self.keep_nodes,
            ),
        )
