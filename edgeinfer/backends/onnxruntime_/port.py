"""What ONNX Runtime says of an input or output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from edgeinfer.artifact.signature import dtype_of
from edgeinfer.errors import CompileError
from edgeinfer.numerics.packing import bits_of, is_packed

__all__ = ["Port", "check_ports"]

# ONNX's number of each element type (`TensorProto.DataType` in onnx.proto), and its dtype, by the name that
# ONNX Runtime gives it.
_TYPES: Mapping[str, tuple[int, str]] = {
    "float": (1, "float32"),
    "uint8": (2, "uint8"),
    "int8": (3, "int8"),
    "uint16": (4, "uint16"),
    "int16": (5, "int16"),
    "int32": (6, "int32"),
    "int64": (7, "int64"),
    "string": (8, "object"),
    "bool": (9, "bool"),
    "float16": (10, "float16"),
    "double": (11, "float64"),
    "uint32": (12, "uint32"),
    "uint64": (13, "uint64"),
    "complex64": (14, "complex64"),
    "complex128": (15, "complex128"),
    "bfloat16": (16, "bfloat16"),
    "float8e4m3fn": (17, "float8_e4m3fn"),
    "float8e4m3fnuz": (18, "float8_e4m3fnuz"),
    "float8e5m2": (19, "float8_e5m2"),
    "float8e5m2fnuz": (20, "float8_e5m2fnuz"),
    "uint4": (21, "uint4"),
    "int4": (22, "int4"),
    "float4e2m1": (23, "float4_e2m1fn"),
    "float8e8m0": (24, "float8_e8m0fnu"),
    "uint2": (25, "uint2"),
    "int2": (26, "int2"),
}


@final
class Port:
    """An input or output of a session.

    Attributes:
        name: Its name.
        element_type: ONNX's number of its element type.
        dtype: The dtype of its arrays.
        foreign: The dtype is none of numpy's own, so that ONNX Runtime's Python layer does not take it.
        packed: ONNX Runtime keeps several values in a byte.
        bits: The size of one value there.
        shape: What the model declares: sizes, names, None.
        nbytes: The size of its array, where dtype and declared shape tell it.
    """

    def __init__(self, value: Any) -> None:
        self.name: str = value.name
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        self.element_type, dtype = _TYPES[kind]
        self.dtype: np.dtype[Any] = dtype_of(dtype)
        self.foreign = self.dtype.isbuiltin != 1
        self.packed = is_packed(self.dtype)
        self.bits = bits_of(self.dtype)
        self.shape: tuple[Any, ...] = tuple(value.shape)
        # ONNX Runtime gives an unknown rank the shape of a scalar, so that an empty shape says nothing.
        static = kind != "string" and self.shape and all(isinstance(size, int) for size in self.shape)
        known = static and not self.packed
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize if known else None

    def allows(self, shape: tuple[int, ...]) -> bool:
        """Whether the declared shape has room for it; an unknown rank looks like a scalar."""
        if not self.shape:
            return True
        return len(shape) == len(self.shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(self.shape, shape, strict=True)
        )


def check_ports(session: Any) -> None:
    """Refuse a session whose inputs and outputs no call of ONNX Runtime's Python layer takes together.

    Its `run` has none of the dtypes that numpy lacks, and its IOBinding has no strings as inputs (1.32).

    Raises:
        CompileError: It has both.
    """
    inputs = [Port(value) for value in (*session.get_inputs(), *session.get_overridable_initializers())]
    strings = [port for port in inputs if port.dtype == object]
    foreign = [p for p in (*inputs, *map(Port, session.get_outputs())) if p.foreign]
    if strings and foreign:
        raise CompileError(
            "ONNX Runtime's Python layer takes no strings beside dtypes that numpy does not have.",
            where=f"input {strings[0].name!r}, {foreign[0].name!r}",
            found=f"str and {foreign[0].dtype}",
            hint=f"Cast {foreign[0].name!r} to float32 or int8 in the model.",
        )
