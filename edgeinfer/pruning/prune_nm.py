"""`PruneNM`: n of every m weights stay, the pattern that sparse tensor cores execute."""

from __future__ import annotations

from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.statistics import Statistics
from edgeinfer.errors import PreconditionError
from edgeinfer.graph.layers import layout_of
from edgeinfer.graph.weights import Linear
from edgeinfer.pruning import options
from edgeinfer.pruning.channel_order import reorder_channels
from edgeinfer.pruning.sparse_masks import group_order, magnitude_nm_mask, nm_mask
from edgeinfer.pruning.sparsify import Pattern, Sparsify
from edgeinfer.transforms.contract import ReportBuilder
from edgeinfer.transforms.refusal import Refusal

__all__ = ["PruneNM"]


@final
@attrs.frozen
class PruneNM(Sparsify):
    """Keep n of every m weights along the input channels, and refit them.

    2:4 is what NVIDIA GPUs from Ampere on execute at up to twice the speed (TensorRT: SPARSE_WEIGHTS); CPUs
    gain nothing but smaller compressed files. Layers whose input channels are not a multiple of m are left
    dense, and the report says so.

    The other options are those of `Sparsify`.

    Attributes:
        n: How many weights of a group stay.
        m: The size of a group.
        reorder: Put channels into an order in which n of every m keep more, where the layers that make them
            can make them in any order. The model computes the same, and no layer is added.
    """

    n: int = attrs.field(default=2, validator=options.number(at_least=1, whole=True))
    m: int = attrs.field(default=4, validator=options.number(at_least=2, at_most=16, whole=True))

    reorder: bool = attrs.field(default=True, kw_only=True, validator=options.yes_or_no)

    def __attrs_post_init__(self) -> None:
        if self.n >= self.m:
            raise PreconditionError(
                "n of m must leave something out.", expected="n < m", found=f"{self.n}:{self.m}"
            )

    @property
    def pattern(self) -> Pattern:
        """The n:m pattern."""
        return Pattern(
            name=f"{self.n}:{self.m}",
            refuse=self._refuse,
            choose=self._choose,
            satisfied=self._satisfied,
            prepare=self._reorder if self.reorder else None,
        )

    def _reorder(
        self, model: ir.Model, wanted: dict[str, Linear], statistics: Statistics | None, report: ReportBuilder
    ) -> None:
        reorder_channels(
            model, wanted, self.n, self.m, report, statistics=statistics, keep_nodes=self.keep_nodes
        )

    def _refuse(self, layer: Linear) -> Refusal | None:
        channels = layout_of(layer).rows // layer.taps
        if channels % self.m == 0:
            return None
        return Refusal(layer.name, f"{channels} input channels are no multiple of {self.m}")

    def _choose(self, layer: Linear, weight: np.ndarray, cov: np.ndarray | None) -> np.ndarray:
        order = group_order(layer, self.m)
        if cov is None:
            return magnitude_nm_mask(weight, order, self.n, self.m)
        return nm_mask(weight, cov, order, self.n, self.m)

    def _satisfied(self, layer: Linear, weight: np.ndarray) -> bool:
        groups = weight[:, group_order(layer, self.m)].reshape(-1, self.m)
        return bool(((groups != 0).sum(1) <= self.n).all())
