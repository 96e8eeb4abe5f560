"""`Signature` and `TensorSpec`: what a model takes and gives."""

from __future__ import annotations

from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.values import as_tuple

__all__ = ["Dim", "Signature", "TensorSpec"]

Dim: TypeAlias = "int | str | None"


def _dims(values: Any) -> tuple[Dim, ...] | None:
    return None if values is None else tuple(values)


@final
@attrs.frozen(kw_only=True)
class TensorSpec:
    """The name, dtype and shape of one input or output.

    Attributes:
        name: The tensor's name in the graph.
        dtype: Its numpy dtype; strings are `object`, bfloat16 and the like come from `ml_dtypes`.
        shape: One entry an axis: an int, the name of a symbolic dimension, or None when it is unknown
            and has no name. None instead of a tuple when not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any] = attrs.field(converter=np.dtype)
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
    """The inputs and outputs of a model, in graph order. Weights are not inputs."""

    inputs: tuple[TensorSpec, ...] = attrs.field(converter=as_tuple)
    outputs: tuple[TensorSpec, ...] = attrs.field(converter=as_tuple)

    @classmethod
    def of_graph(cls, graph: Any) -> Signature:
        """Read the signature of an `onnx_ir.Graph`."""
        weights = graph.initializers
        return cls(
            inputs=[_spec(value) for value in graph.inputs if value.name not in weights],
            outputs=[_spec(value) for value in graph.outputs],
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
        left, right = (
            ", ".join(f"{spec.name} {spec.describe()}" for spec in specs)
            for specs in (self.inputs, self.outputs)
        )
        return f"{left} -> {right}"


def _spec(value: Any) -> TensorSpec:
    shape = value.shape
    dims = None if shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
    dtype: Any = (
        np.dtype(object) if value.dtype is None or value.dtype.name == "STRING" else value.dtype.numpy()
    )
    return TensorSpec(name=value.name, dtype=dtype, shape=dims)
