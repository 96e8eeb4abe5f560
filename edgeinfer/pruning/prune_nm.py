"""`PruneNM`: n of every m weights stay, the pattern that sparse tensor cores execute."""

from __future__ import annotations

from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.devices.profile import Target
from edgeinfer.errors import PreconditionError
from edgeinfer.pruning.layers import Layer
from edgeinfer.pruning.sparse_masks import group_order, magnitude_nm_mask, nm_mask
from edgeinfer.pruning.sparsify import Pattern, SparseSettings, sparsify
from edgeinfer.quantization.calibration import as_calibration
from edgeinfer.signature import Signature
from edgeinfer.transforms.base import GraphTransform, ReportBuilder

__all__ = ["PruneNM"]


@final
@attrs.frozen
class PruneNM(GraphTransform):
    """Keep n of every m weights along the input channels, and refit them.

    2:4 is what NVIDIA GPUs from Ampere on execute at up to twice the speed (TensorRT: SPARSE_WEIGHTS); CPUs
    gain nothing but smaller compressed files. Layers whose input channels are not a multiple of m are left
    dense, and the report says so.

    Attributes:
        n: How many weights of a group stay.
        m: The size of a group.
        calibration: A re-iterable of feeds. Without one: magnitude, and nothing is refitted.
        sweeps: How often all layers are fitted; the masks are chosen in the first.
        max_columns: How many output positions of a layer its moments are taken from.
        ridge: How strongly refitted weights are drawn to the present ones. None: chosen on held-out feeds.
        target: Taken for the sake of `optimize`.
        progress: Show progress. None: in a terminal or a notebook.
    """

    n: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    m: int = attrs.field(default=4, validator=[attrs.validators.ge(2), attrs.validators.le(16)])
    calibration: Any = attrs.field(default=None, kw_only=True, eq=False)
    sweeps: int = attrs.field(default=1, kw_only=True, validator=attrs.validators.ge(1))
    max_columns: int = attrs.field(default=24_000, kw_only=True, validator=attrs.validators.ge(100))
    ridge: float | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    progress: bool | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.n >= self.m:
            raise PreconditionError(
                "n of m must leave something out.", expected="n < m", found=f"{self.n}:{self.m}"
            )

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Sparsify every layer that can have the pattern."""
        pattern = Pattern(
            name=f"{self.n}:{self.m}", refuse=self._refuse, choose=self._choose, satisfied=self._satisfied
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

    def _refuse(self, layer: Layer) -> str:
        channels = layer.layout.rows // layer.taps
        return f"{channels} input channels are no multiple of {self.m}" if channels % self.m else ""

    def _choose(self, layer: Layer, weight: np.ndarray, cov: np.ndarray | None) -> np.ndarray:
        order = group_order(layer, self.m)
        if cov is None:
            return magnitude_nm_mask(weight, order, self.n, self.m)
        return nm_mask(weight, cov, order, self.n, self.m)

    def _satisfied(self, layer: Layer, weight: np.ndarray) -> bool:
        groups = weight[:, group_order(layer, self.m)].reshape(-1, self.m)
        return bool(((groups != 0).sum(1) <= self.n).all())
