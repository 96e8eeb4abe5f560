"""Arrays in and out of OpenVINO's tensors, for every dtype.

Inputs lie in memory that OpenVINO allocated, and a request keeps the same for life: where a graph passes an
input on, OpenVINO 2026.4 writes an output into the memory that the input of an earlier run of the request
had, which may be others' by now. So nothing of a caller is ever lent, and no tensor of a request is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from edgeinfer.artifact.signature import TensorSpec
from edgeinfer.artifact.signature import dtype_of as named_dtype
from edgeinfer.backends.openvino_.narrowing import check_values, is_wide
from edgeinfer.errors import CompileError
from edgeinfer.numerics.packing import is_packed, pack, unpack

__all__ = ["CheckedInput", "Convert", "converter", "dtype_of", "input_names", "new_tensor"]

# Dtypes of `ml_dtypes` by OpenVINO's name; its Python layer gives their arrays as float16, uint8 or int8.
_FOREIGN: Mapping[str, str] = {
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f8e8m0": "float8_e8m0fnu",
    "i4": "int4",
    "u4": "uint4",
    "f4e2m1": "float4_e2m1fn",
}

# From the extension's array of an output to ours; the request knows the shape where that is lost.
Convert: TypeAlias = "Callable[[Any, int, np.ndarray], np.ndarray]"


def input_names(ports: Sequence[Any], names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each input of a compiled model in the signature.

    OpenVINO drops inputs that nothing reads, and keeps the order of the others. Where a node such as Dropout
    passes an input on, the input has the names of that node's output only (2026.4), so its place must tell.

    Args:
        ports: The inputs of the compiled model.
        names: Those of the signature, in order.

    Raises:
        CompileError: More than one input may be meant.
    """
    found: list[str | None] = [next((n for n in names if n in port.get_names()), None) for port in ports]
    for index, name in enumerate(found):
        if name is None:
            end = next((i for i in range(index, len(found)) if found[i] is not None), len(found))
            before = names.index(found[index - 1]) + 1 if index else 0
            after = names.index(found[end]) if end < len(found) else len(names)
            between = names[before:after]
            if len(between) != end - index:
                raise CompileError(
                    "OpenVINO lost the name of an input that a node passes on unchanged.",
                    where=f"input {index} of {len(ports)}, known as {', '.join(ports[index].get_names())}",
                    expected=f"one of {', '.join(names)}",
                    hint="Simplify the model first (transform Simplify), or use backend 'onnxruntime'.",
                )
            found[index:end] = between
    return tuple(name for name in found if name is not None)


def dtype_of(element_type: Any) -> np.dtype[Any]:
    """Return the dtype of a port's arrays."""
    foreign = _FOREIGN.get(element_type.get_type_name())
    return named_dtype(element_type.to_dtype() if foreign is None else foreign)


def new_tensor(ov: Any, element_type: Any, shape: tuple[int, ...]) -> tuple[Any, np.ndarray]:
    """Return a tensor of zeros in OpenVINO's own memory, and the array over it.

    Of dtypes of less than a byte it is the array of the packed bytes. The array keeps the tensor alive.
    """
    tensor = ov.Tensor(element_type, ov.Shape(shape))
    dtype = dtype_of(element_type)
    array: np.ndarray = tensor.data if is_packed(dtype) else tensor.data.view(dtype)
    array[...] = 0
    return tensor, array


@final
class CheckedInput:
    """An input that needs more than a copy: a check of its values, or packing.

    Attributes:
        name: Its name in the signature.
    """

    def __init__(self, name: str, element_type: Any, array: np.ndarray) -> None:
        self.name = name
        self._wide = is_wide(element_type)
        self._packed = is_packed(dtype_of(element_type))
        self._array = array

    @staticmethod
    def needed(element_type: Any) -> bool:
        """Whether an input of the type is one."""
        return is_wide(element_type) or is_packed(dtype_of(element_type))

    def put(self, array: np.ndarray) -> None:
        """Copy an array in.

        Raises:
            InputError: A value does not fit what OpenVINO computes in.
        """
        if self._wide:
            check_values(self.name, array)
        if not self._packed:
            self._array[...] = array
        elif array.size:  # for a scalar OpenVINO's array has a shape, for nothing it has a byte
            self._array.view(np.uint8)[...] = pack(array)


def converter(port: Any, spec: TensorSpec | None) -> Convert | None:
    """Return what makes the signature's array of the extension's array of an output; None for nothing."""
    kind = port.element_type
    if kind.get_type_name() == "string":
        return lambda _, __, array: array.astype(object)
    dtype = dtype_of(kind)
    if is_packed(dtype):
        return lambda request, index, array: unpack(
            array, tuple(request.get_output_tensor(index).shape), dtype
        )
    if spec is not None and spec.dtype != dtype and spec.dtype != object:
        wanted = spec.dtype  # bfloat16, which OpenVINO was asked for in float32; see openvino_compile
        return lambda _, __, array: array.astype(wanted)
    if dtype.isbuiltin == 1:
        return None
    return lambda _, __, array: array.view(dtype)
