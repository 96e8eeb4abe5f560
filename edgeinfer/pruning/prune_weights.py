"""`PruneWeights`: unstructured sparsity."""

from __future__ import annotations

from typing import final

import attrs
import numpy as np

from edgeinfer.graph.weights import Linear
from edgeinfer.pruning import options
from edgeinfer.pruning.sparse_masks import dropped_count, sparse_mask
from edgeinfer.pruning.sparsify import Pattern, Sparsify

__all__ = ["PruneWeights"]


@final
@attrs.frozen
class PruneWeights(Sparsify):
    """Set a part of each layer's weights to zero, and refit the others.

    Runtimes here execute zeros as they do other numbers; what it gains is smaller compressed files and
    transfers.

    The other options are those of `Sparsify`.

    Attributes:
        sparsity: The part of each layer's weights that becomes zero.
    """

    sparsity: float = attrs.field(default=0.5, validator=options.number(above=0, below=1))

    @property
    def pattern(self) -> Pattern:
        """A part of each layer's weights."""
        return Pattern(
            name=f"{self.sparsity:.0%} sparse",
            refuse=lambda _: None,
            choose=self._choose,
            satisfied=self._satisfied,
        )

    def _choose(self, _: Linear, weight: np.ndarray, cov: np.ndarray | None) -> np.ndarray:
        return sparse_mask(weight, np.eye(weight.shape[1]) if cov is None else cov, self.sparsity)

    def _satisfied(self, _: Linear, weight: np.ndarray) -> bool:
        rows, columns = weight.shape
        return int((weight == 0).sum()) >= dropped_count(rows, columns, self.sparsity)
