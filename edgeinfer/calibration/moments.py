"""Second moments of a node's input, for reconstructing its weights layer by layer; flat in memory.

With X the matrix of `im2col`, H = X Xᵀ is all that least squares and GPTQ need to know of the data, however
much of it there is: |W X - W' X|² = tr((W - W') H (W - W')ᵀ).
"""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

from edgeinfer.errors import CalibrationError
from edgeinfer.graph.im2col import Layout, layout_of_node
from edgeinfer.numerics.coarse_gram import add_coarse_gram
from edgeinfer.numerics.fixed_order import matmul

__all__ = ["MomentObserver"]

_SEED = 0x5EED


@final
class MomentObserver:
    """Accumulates H = X Xᵀ, ΣX and the number of columns of a Conv, Gemm or MatMul.

    To reconstruct against another model's output (Y of the float model, X of the compressed one), call
    `update_pair(x, y)` instead of `update(x)`: it also accumulates Y Xᵀ, ΣY and ΣY².

    Sums are in a fixed order (`numerics.fixed_order`): their bits do not depend on threads or cores.

    Args:
        node: The node, or its Layout.
        max_columns: Take at most so many output positions of each update, drawn with a fixed seed.
        coarse: Eight bits of each row of X are enough for H (`numerics.coarse_gram`), which is quicker.
        max_bytes: The size of a piece of X at most.
    """

    def __init__(
        self,
        node: ir.Node | Layout,
        *,
        max_columns: int | None = 4096,
        coarse: bool = False,
        max_bytes: int = 64 << 20,
    ) -> None:
        self.layout = layout_of_node(node) if isinstance(node, ir.Node) else node
        groups, rows = self.layout.groups, self.layout.rows
        self._max_columns = max_columns
        self._coarse = coarse
        self._max_bytes = max_bytes
        self._h = np.zeros((groups, rows, rows))
        self._sum = np.zeros((groups, rows))
        self._cross: np.ndarray | None = None
        self._cross_sum: np.ndarray | None = None
        self._power: np.ndarray | None = None
        self.count = 0

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return f"{'coarse ' if self._coarse else ''}moments {self._max_columns} {self.layout}"

    def update(self, x: np.ndarray) -> None:
        """Take in the node's input.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        self._take(x, None)

    def update_pair(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in the node's input, and the output that it ought to have, of the same feed.

        Raises:
            CalibrationError: A value is NaN or infinite, or the shapes do not belong together.
        """
        self._take(x, self.layout.output_columns(y))

    def add(self, other: MomentObserver) -> None:
        """Take in what another observer of the same node, with targets as well, has seen."""
        self._h += other._h
        self._sum += other._sum
        self.count += other.count
        if other._cross is not None and other._cross_sum is not None and other._power is not None:
            zero = np.zeros(())
            self._cross = (zero if self._cross is None else self._cross) + other._cross
            self._cross_sum = (zero if self._cross_sum is None else self._cross_sum) + other._cross_sum
            self._power = (zero if self._power is None else self._power) + other._power

    @property
    def hessian(self) -> np.ndarray:
        """X Xᵀ / n, float64 (groups, K, K)."""
        return self._h / self._counted()

    @property
    def mean(self) -> np.ndarray:
        """The mean column of X, float64 (groups, K)."""
        return self._sum / self._counted()

    @property
    def cross(self) -> np.ndarray:
        """Y Xᵀ / n, float64 (groups, M / groups, K)."""
        return self._paired(self._cross) / self._counted()

    @property
    def target_mean(self) -> np.ndarray:
        """The mean column of Y, float64 (groups, M / groups)."""
        return self._paired(self._cross_sum) / self._counted()

    @property
    def target_power(self) -> np.ndarray:
        """The mean of Y², float64 (groups, M / groups)."""
        return self._paired(self._power) / self._counted()

    @property
    def covariance(self) -> np.ndarray:
        """The covariance of X, float64 (groups, K, K)."""
        mean = self.mean[..., None]
        covariance: np.ndarray = self.hessian - mean * mean.transpose(0, 2, 1)
        return covariance

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        state = {"h": self._h, "sum": self._sum, "count": np.array(self.count)}
        if self._cross is not None and self._cross_sum is not None and self._power is not None:
            state |= {"cross": self._cross, "cross_sum": self._cross_sum, "power": self._power}
        return {name: array.copy() for name, array in state.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._h, self._sum, self.count = state["h"], state["sum"], int(state["count"])
        self._cross, self._cross_sum = state.get("cross"), state.get("cross_sum")
        self._power = state.get("power")

    def _take(self, x: np.ndarray, target: np.ndarray | None) -> None:
        # Seeded by what was seen, so that a pass that was taken up again draws the same columns.
        rng = np.random.default_rng((_SEED, self.count))
        for piece, index in self.layout.columns(
            x, max_bytes=self._max_bytes, max_columns=self._max_columns, rng=rng
        ):
            sums = piece.sum(axis=2, dtype=np.float64)
            if not np.isfinite(sums).all():
                raise CalibrationError("A tensor has values that are not finite.", expected="finite numbers")
            self._sum += sums
            if self._coarse:
                add_coarse_gram(self._h, piece)
            else:
                self._h += matmul(piece, piece.transpose(0, 2, 1), slices=1)
            self.count += piece.shape[2]
            if target is not None:
                self._take_target(piece, target[:, :, index])

    def _take_target(self, piece: np.ndarray, target: np.ndarray) -> None:
        if self._cross is None or self._cross_sum is None or self._power is None:
            self._cross = np.zeros((*target.shape[:2], piece.shape[1]))
            self._cross_sum = np.zeros(target.shape[:2])
            self._power = np.zeros(target.shape[:2])
        self._cross += matmul(target, piece.transpose(0, 2, 1), slices=1)
        self._cross_sum += target.sum(axis=2, dtype=np.float64)
        self._power += np.square(target).sum(axis=2, dtype=np.float64)

    def _counted(self) -> int:
        if not self.count:
            raise CalibrationError("A MomentObserver has seen no values.")
        return self.count

    def _paired(self, array: np.ndarray | None) -> np.ndarray:
        if array is None:
            raise CalibrationError(
                "The MomentObserver has no target.", hint="Feed it with `update_pair(x, y)`."
            )
        return array
