"""`Signature` and `TensorSpec`: what a model takes and gives."""

from __future__ import annotations

from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.values import as_tuple

__all__ = ["ANY_SIZE_NAMES", "Dim", "Signature", "TensorSpec", "dtype_of"]

Dim: TypeAlias = "int | str | None"

# What exporters write where they know no name for a dimension: `None` and `?` (keras2onnx, skl2onnx), `-1`
# (Paddle), and words that say the same, in lower case. As a name, it would say that all axes called so have
# one size. Names with a number behind, such as `unk__7` of tf2onnx, are unique to one dimension: they stay.
ANY_SIZE_NAMES = frozenset({"", "?", "*", "-1", "any", "dynamic", "none", "unk", "unknown"})
# Beyond this, as in models whose exporter lists all weights as inputs, the optional inputs are counted.
_NAMED_OPTIONAL = 3


def _dims(values: Any) -> tuple[Dim, ...] | None:
    return None if values is None else tuple(_dim(value) for value in values)


def _dim(value: Dim) -> Dim:
    if isinstance(value, str):
        return None if value.strip().lower() in ANY_SIZE_NAMES else value
    return None if value is None or value < 0 else value


def dtype_of(value: Any) -> np.dtype[Any]:
    """Return the dtype of a name such as `float32` or `int4`, or of whatever else numpy takes for one."""
    try:
        known: np.dtype[Any] = np.dtype(value)
        return known
    except TypeError:  # perhaps a name that numpy learns from ml_dtypes, such as int4
        import ml_dtypes

        found = getattr(ml_dtypes, value, None) if isinstance(value, str) else None
        if not (isinstance(found, type) and issubclass(found, np.generic)):
            raise
        return np.dtype(found)


@final
@attrs.frozen(kw_only=True)
class TensorSpec:
    """The name, dtype and shape of one input or output.

    Attributes:
        name: The tensor's name in the graph.
        dtype: Its numpy dtype; strings are `object`, bfloat16 and the like come from `ml_dtypes`.
        shape: One entry an axis: an int, the name of a symbolic dimension, or None when it is unknown
            and has no name (or one of `ANY_SIZE_NAMES`). None instead of a tuple when not even the rank is
            known.
    """

    name: str
    dtype: np.dtype[Any] = attrs.field(converter=dtype_of)
    shape: tuple[Dim, ...] | None = attrs.field(default=None, converter=_dims)

    @property
    def is_static(self) -> bool:
        """Whether every dimension is a number."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    def describe(self) -> str:
        """Return text such as `float32 (N, 3, 224, 224)`."""
        if self.shape is None:
            return f"{self.dtype} (any shape)"
        inner = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype} ({inner}{',' if len(self.shape) == 1 else ''})"


@final
@attrs.frozen(kw_only=True)
class Signature:
    """The inputs and outputs of a model, in graph order.

    Attributes:
        inputs: What every call must give.
        outputs: What every call returns.
        optional: What a call may give besides: inputs that have a default in the model. Transforms take the
            defaults for constants, so that a model which was optimized has fewer of them; that is why they
            do not count when signatures are compared.
    """

    inputs: tuple[TensorSpec, ...] = attrs.field(converter=as_tuple)
    outputs: tuple[TensorSpec, ...] = attrs.field(converter=as_tuple)
    optional: tuple[TensorSpec, ...] = attrs.field(default=(), converter=as_tuple, eq=False)

    @classmethod
    def of_graph(cls, graph: Any, *, ir_version: int = 4) -> Signature:
        """Read the signature of an `onnx_ir.Graph`.

        Args:
            graph: The graph.
            ir_version: Before version 4 every weight had to stand among the inputs, so there it says nothing
                (onnx/docs/IR.md, "Graphs").
        """
        weights = graph.initializers
        return cls(
            inputs=[_spec(value) for value in graph.inputs if value.name not in weights],
            outputs=[_spec(value) for value in graph.outputs],
            optional=[_spec(value) for value in graph.inputs if value.name in weights and ir_version >= 4],
        )

    @property
    def is_static(self) -> bool:
        """Whether every input has a static shape."""
        return all(spec.is_static for spec in self.inputs)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the inputs' symbolic dimensions, in order of appearance."""
        dims = (dim for spec in self.inputs for dim in spec.shape or () if isinstance(dim, str))
        return tuple(dict.fromkeys(dims))

    def describe(self) -> str:
        """Return text such as `input float32 (N, 3) -> output float32 (N, 10)`."""
        left, right, optional = (
            ", ".join(f"{spec.name} {spec.describe()}" for spec in specs)
            for specs in (self.inputs, self.outputs, self.optional)
        )
        if len(self.optional) > _NAMED_OPTIONAL:
            optional = f"{len(self.optional)} inputs"
        return f"{left}{f', optional {optional}' if optional else ''} -> {right}"


def _spec(value: Any) -> TensorSpec:
    shape = value.shape
    dims = None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
    dtype: Any = (
        np.dtype(object) if value.dtype is None or value.dtype.name == "STRING" else value.dtype.numpy()
    )
    return TensorSpec(name=value.name, dtype=dtype, shape=dims)
