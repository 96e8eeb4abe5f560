"""`PruneWeights`: unstructured sparsity."""

from __future__ import annotations

from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target
from edgeinfer.pruning.layers import Layer
from edgeinfer.pruning.sparse_masks import sparse_mask
from edgeinfer.pruning.sparsify import Pattern, SparseSettings, sparsify
from edgeinfer.quantization.calibration import as_calibration
from edgeinfer.signature import Signature
from edgeinfer.transforms.base import GraphTransform, ReportBuilder

__all__ = ["PruneWeights"]


@final
@attrs.frozen
class PruneWeights(GraphTransform):
    """Set a part of each layer's weights to zero, and refit the others.

    Runtimes here execute zeros as they do other numbers; what it gains is smaller compressed files and
    transfers.

    Attributes:
        sparsity: The part of each layer's weights that becomes zero.
        calibration: A re-iterable of feeds. Without one: magnitude, and nothing is refitted.
        sweeps: How often all layers are fitted; the masks are chosen in the first.
        max_columns: How many output positions of a layer its moments are taken from.
        ridge: How strongly refitted weights are drawn to the present ones. None: chosen on held-out feeds.
        target: Taken for the sake of `optimize`.
        progress: Show progress. None: in a terminal or a notebook.
    """

    sparsity: float = attrs.field(default=0.5, validator=[attrs.validators.gt(0), attrs.validators.lt(1)])
    calibration: Any = attrs.field(default=None, kw_only=True, eq=False)
    sweeps: int = attrs.field(default=1, kw_only=True, validator=attrs.validators.ge(1))
    max_columns: int = attrs.field(default=24_000, kw_only=True, validator=attrs.validators.ge(100))
    ridge: float | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    progress: bool | None = attrs.field(default=None, kw_only=True)

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Sparsify every dense layer."""
        pattern = Pattern(
            name=f"{self.sparsity:.0%} sparse",
            refuse=lambda _: "",
            choose=self._choose,
            satisfied=self._satisfied,
        )
        sparsify(
            model,
            report,
            SparseSettings(
                pattern=pattern,
                feeds=None
                if self.calibration is None
                else as_calibration(self.calibration, Signature.of_graph(model.graph)),
                max_columns=self.max_columns,
                ridge=self.ridge,
                sweeps=self.sweeps,
                progress=self.progress,
            ),
        )

    def _choose(self, _: Layer, weight: np.ndarray, cov: np.ndarray | None) -> np.ndarray:
        return sparse_mask(weight, np.eye(weight.shape[1]) if cov is None else cov, self.sparsity)

    def _satisfied(self, _: Layer, weight: np.ndarray) -> bool:
        # Rounding in blocks of columns may leave a few weights short of the wanted part.
        return bool((weight == 0).mean() >= self.sparsity - 0.01)
