"""Checking of inputs against a signature, once for all backends.

`InputValidator` is on the path of every inference, so what can be known beforehand is computed in the
constructor, and the common case (the right dtype, a static shape, contiguous) takes a few attribute
comparisons. Everything else goes the slow way, which is there to give a good message.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from edgeinfer.artifact.device_array import DeviceArray
from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import InputError

__all__ = ["InputValidator"]


@final
class InputValidator:
    """Turns what a caller gave into feeds that a Runner can take.

    Args:
        signature: The inputs.
        device_arrays: The runner takes arrays in device memory: they are passed on as `DeviceArray`.
        optional: Inputs with a default may be given, too.
    """

    def __init__(self, signature: Signature, *, device_arrays: bool = False, optional: bool = False) -> None:
        self._device_arrays = device_arrays
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._optional = {spec.name: spec for spec in signature.optional} if optional else {}
        self._built_in = {spec.name for spec in signature.optional} - self._optional.keys()
        self._count = len(self._specs)
        self._static = tuple(
            (spec.name, spec.dtype, spec.shape) for spec in signature.inputs if spec.is_static
        )
        # The short way is for static shapes only; no dict has -1 entries.
        self._static_count = self._count if len(self._static) == self._count else -1

    def check(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> Mapping[str, np.ndarray]:
        """Return feeds: every input by name, C-contiguous, of the right dtype and a fitting shape.

        Optional inputs are among them where they were given.

        Raises:
            InputError: A name, dtype, rank or dimension is wrong.
        """
        if type(inputs) is dict and len(inputs) == self._static_count:
            for name, dtype, shape in self._static:
                array = inputs.get(name)
                if (
                    type(array) is not np.ndarray
                    or array.dtype is not dtype
                    or array.shape != shape
                    or not array.flags.c_contiguous
                ):
                    break
            else:
                return inputs
        return self._checked(inputs)

    def _checked(self, inputs: object) -> dict[str, np.ndarray]:
        given = self._named(inputs)
        missing = [name for name in self._specs if name not in given]
        unknown = [name for name in given if name not in self._specs and name not in self._optional]
        if missing or unknown:
            raise self._wrong_names(missing, unknown)
        optional = {name: spec for name, spec in self._optional.items() if name in given}
        symbols: dict[str, tuple[int, str]] = {}
        return {
            name: self._array(spec, given[name], symbols) for name, spec in (self._specs | optional).items()
        }

    def _wrong_names(self, missing: list[str], unknown: list[str]) -> InputError:
        parts = [f"missing {', '.join(missing)}"] if missing else []
        parts += [f"unknown {', '.join(map(str, unknown))}"] if unknown else []
        names = [f"{spec.name} {spec.describe()}" for spec in self._specs.values()]
        names += [f"{spec.name} {spec.describe()} (optional)" for spec in self._optional.values()]
        hint = 'Pass {"name": array} with exactly these names.'
        built_in = [name for name in unknown if name in self._built_in]
        if built_in:
            hint = f"This backend takes the model's default of {built_in[0]!r}, and no other value."
        return InputError(
            "The inputs do not have the names of the model's inputs.",
            expected=", ".join(names),
            found="; ".join(parts),
            hint=hint,
        )

    def _named(self, inputs: object) -> Mapping[str, object]:
        if isinstance(inputs, Mapping):
            return inputs
        if self._count != 1:
            raise InputError(
                f"The model has {self._count} inputs, so they must come by name.",
                expected="a mapping with " + ", ".join(self._specs),
                found=type(inputs).__name__,
            )
        return {next(iter(self._specs)): inputs}

    def _array(self, spec: TensorSpec, value: object, symbols: dict[str, tuple[int, str]]) -> Any:
        if self._device_arrays and type(value) is not np.ndarray:
            on_device = DeviceArray.of(value)
            if on_device is not None:
                if on_device.dtype != spec.dtype:
                    raise self._wrong_dtype(spec, on_device)
                _check_shape(spec, on_device, symbols)
                return on_device
        try:
            array = np.asarray(value)
        except Exception as error:
            raise InputError(
                "An input is not an array.",
                where=f"input {spec.name!r}",
                found=f"{type(value).__name__}: {error}",
            ) from error
        if spec.dtype == object:
            if array.dtype.kind not in "OUT":
                raise self._wrong_dtype(spec, array)
            array = array.astype(object)
            for item in array.flat:
                if not isinstance(item, str):  # a runtime would take its repr
                    raise self._wrong_dtype(spec, array, type(item).__name__)
        elif array.dtype != spec.dtype:
            raise self._wrong_dtype(spec, array)
        _check_shape(spec, array, symbols)
        return np.ascontiguousarray(array).reshape(array.shape)

    def _wrong_dtype(self, spec: TensorSpec, array: np.ndarray | DeviceArray, found: str = "") -> InputError:
        name = "str" if spec.dtype == object else str(spec.dtype)
        return InputError(
            "An input has the wrong dtype; it is not converted behind your back.",
            where=f"input {spec.name!r}",
            expected=name,
            found=found or str(array.dtype),
            hint=f"Pass {spec.name}.astype({name!r}), after the preprocessing that the model expects.",
        )


def _check_shape(
    spec: TensorSpec, array: np.ndarray | DeviceArray, symbols: dict[str, tuple[int, str]]
) -> None:
    if spec.shape is None:
        return
    if len(array.shape) != len(spec.shape):
        raise _wrong_shape(
            spec, array, f"the rank is {len(array.shape)}, not {len(spec.shape)}", _rank_hint(spec, array)
        )
    for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise _wrong_shape(spec, array, f"axis {axis} is {size}, not {dim}", _layout_hint(spec, array))
        if isinstance(dim, str):
            first, owner = symbols.setdefault(dim, (size, f"{spec.name} axis {axis}"))
            if first != size:
                raise _wrong_shape(
                    spec,
                    array,
                    f"axis {axis} is {size}, but {dim} is {first} in {owner}",
                    f"All axes called {dim} must have one size.",
                )


def _wrong_shape(
    spec: TensorSpec, array: np.ndarray | DeviceArray, what: str, hint: str | None
) -> InputError:
    return InputError(
        f"An input has the wrong shape: {what}.",
        where=f"input {spec.name!r}",
        expected=spec.describe(),
        found=f"{array.dtype} {array.shape}",
        hint=hint,
    )


def _rank_hint(spec: TensorSpec, array: np.ndarray | DeviceArray) -> str | None:
    assert spec.shape is not None
    if len(array.shape) + 1 == len(spec.shape):
        return f"Add the batch axis: {spec.name}[None]."
    if len(array.shape) - 1 == len(spec.shape) and array.shape[0] == 1:
        return f"Drop the batch axis: {spec.name}[0]."
    return None


def _layout_hint(spec: TensorSpec, array: np.ndarray | DeviceArray) -> str | None:
    """Suggest the transposition that would make the array fit, if there is one."""
    rank = len(array.shape)
    if rank > 5:
        return None
    layouts: list[tuple[Any, ...]] = (
        [(0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)] if rank > 2 else []
    )
    for order in [*layouts, *itertools.permutations(range(rank))]:
        shape = [array.shape[axis] for axis in order]
        if all(
            not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape or (), shape, strict=True)
        ):
            fix = f"np.ascontiguousarray({spec.name}.transpose{tuple(order)})"
            return f"It looks like another layout; try {fix}."
    return None
