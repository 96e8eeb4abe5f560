"""The static shapes that something was measured with, and where each size comes from.

A size that nobody gave is never made up, but for a batch of one, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Dim, Signature, TensorSpec
from edgeinfer.errors import InputError
from edgeinfer.feeds.batch import batch_axis, fixed_batch, is_batch
from edgeinfer.values import as_tuple

__all__ = [
    "ASSUMED",
    "DECLARED",
    "FROM_FEEDS",
    "GIVEN",
    "InputShape",
    "Shapes",
    "checked_shapes",
    "describe_inputs",
    "dims_of",
    "input_shapes",
    "resolve_shapes",
]

# By input name (`{"input": (1, 3, 224, 224)}`), by symbolic dimension (`{"N": 8}`), or both.
Shapes: TypeAlias = "Mapping[str, int | Sequence[int]]"

DECLARED, GIVEN, FROM_FEEDS, ASSUMED = "declared", "given", "from feeds", "assumed"


@final
@attrs.frozen(kw_only=True)
class InputShape:
    """The shape of one input in a measurement.

    Attributes:
        name: The input's name.
        dtype: Its dtype.
        shape: Its static shape.
        dims: What the model declares for each axis.
        origins: Where the size of each axis is from: `declared` in the model, `given` by the caller,
            `from feeds`, or `assumed`, which a batch of one is when nothing is said about it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = attrs.field(converter=as_tuple)
    dims: tuple[Dim, ...] = attrs.field(converter=as_tuple)
    origins: tuple[str, ...] = attrs.field(converter=as_tuple)

    def describe(self) -> str:
        """Return text such as `x float32 (1, 3, 224, 224), N = 1 assumed`."""
        parts = [f"{self.name} {self.dtype} {self.shape}"]
        for origin in (GIVEN, FROM_FEEDS, ASSUMED):
            sizes = [
                f"{_axis(axis, dim)} = {size}"
                for axis, (dim, size, own) in enumerate(zip(self.dims, self.shape, self.origins, strict=True))
                if own == origin
            ]
            if sizes:
                parts.append(f"{' and '.join(sizes)} {origin}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON-compatible values."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "origins": list(self.origins),
        }


def _axis(axis: int, dim: Dim) -> str:
    return dim if isinstance(dim, str) else f"axis {axis}"


def describe_inputs(inputs: Iterable[InputShape]) -> str:
    """Return one line on all inputs."""
    return "; ".join(each.describe() for each in inputs)


def input_shapes(
    signature: Signature, shapes: Shapes | None = None, *, batch: int | None = None
) -> tuple[InputShape, ...]:
    """Give every input a static shape.

    Args:
        signature: The inputs.
        shapes: Sizes of symbolic dimensions by their name, or entire shapes by input name.
        batch: The size of the batch where the model leaves it open. None: 1, which is said to be assumed.

    Raises:
        InputError: A name is neither an input nor a symbolic dimension, a shape does not fit, or a size is
            missing that is not that of a batch.
    """
    if batch is not None and (not isinstance(batch, (int, np.integer)) or batch < 1):
        raise InputError("That is no size of a batch.", expected="a whole number from 1", found=batch)
    given = checked_shapes(signature, shapes or {})
    sizes = {name: size for name, size in given.items() if isinstance(size, int)}
    entire = {name: shape for name, shape in given.items() if isinstance(shape, tuple)}
    for spec in signature.inputs:  # first all of these, so that the inputs before them get the same sizes
        if spec.name in entire:
            _fit(spec, entire[spec.name], sizes)
    found = tuple(
        _input_shape(spec, signature, entire.get(spec.name), sizes, batch) for spec in signature.inputs
    )
    if batch is not None:
        _check_batch(signature, found, batch)
    return found


def resolve_shapes(
    signature: Signature, shapes: Shapes | None = None, *, batch: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `input_shapes` by input name."""
    return {each.name: each.shape for each in input_shapes(signature, shapes, batch=batch)}


def _check_batch(signature: Signature, found: Iterable[InputShape], batch: int) -> None:
    for spec, each in zip(signature.inputs, found, strict=True):
        axis = batch_axis(spec, signature)
        if axis is not None and each.shape[axis] == batch:
            return
    fixed = fixed_batch(signature)
    if fixed != batch:
        raise InputError(
            "The model does not take a batch of that size.",
            expected=signature.describe().split(" -> ")[0] if fixed is None else f"a batch of {fixed}",
            found=f"batch={batch}",
        )


def dims_of(spec: TensorSpec, rank: int) -> tuple[Dim, ...]:
    """Return what the model declares for each axis; None for all of them where not even the rank is known."""
    return spec.shape if spec.shape is not None else (None,) * rank


def checked_shapes(signature: Signature, shapes: Shapes) -> dict[str, int | tuple[int, ...]]:
    """Return shapes that were given, after checking their names and that they are sizes.

    Raises:
        InputError: A name is neither an input nor a symbolic dimension, or a value is no size or shape.
    """
    names = {spec.name for spec in signature.inputs}
    found: dict[str, int | tuple[int, ...]] = {}
    for name, value in shapes.items():
        # One number for an input is its shape where it has one axis.
        entire = not isinstance(value, (int, np.integer)) or (name in names and name not in signature.symbols)
        if name not in (names if entire else signature.symbols):
            what = "no input" if name in signature.symbols else "neither an input nor a symbolic dimension"
            raise InputError(
                f"{name!r} is {what}.",
                where="shapes",
                expected=f"entire shapes of {', '.join(sorted(names))}; "
                f"sizes of {', '.join(signature.symbols) or 'no dimension'}",
                found=f"{name!r}: {value!r}",
            )
        sizes = _sizes(name, (value,) if isinstance(value, (int, np.integer)) else value)
        found[name] = sizes if entire else sizes[0]
    return found


def _sizes(name: str, values: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(values)
    except TypeError:
        sizes = (None,)
    if not all(
        isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0 for size in sizes
    ):
        raise InputError(
            "That is not a shape.", where=f"shapes, {name!r}", expected="whole numbers from 0", found=values
        )
    return tuple(int(size) for size in sizes)


def _fit(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    fits = spec.shape is None or len(shape) == len(spec.shape)
    for dim, size in zip(spec.shape or (), shape, strict=False):
        if isinstance(dim, int):
            fits = fits and dim == size
        elif dim is not None:
            fits = fits and sizes.setdefault(dim, size) == size
    if not fits:
        raise InputError(
            "The shape given does not fit the input.",
            where=f"input {spec.name!r}",
            expected=spec.describe(),
            found=str(shape),
        )


def _input_shape(
    spec: TensorSpec,
    signature: Signature,
    entire: tuple[int, ...] | None,
    sizes: Mapping[str, int],
    batch: int | None,
) -> InputShape:
    if spec.shape is None and entire is None:
        raise _unknown(spec, signature, ())
    dims = dims_of(spec, len(entire or ()))
    shape: list[int] = []
    origins: list[str] = []
    for axis, dim in enumerate(dims):
        size = dim if entire is None else entire[axis]
        if isinstance(dim, int):
            origin = DECLARED
        elif entire is not None:
            origin = GIVEN
        elif dim in sizes:
            size, origin = sizes[str(dim)], GIVEN
        elif is_batch(signature, spec, axis):
            size, origin = (1, ASSUMED) if batch is None else (batch, GIVEN)
        else:
            raise _unknown(spec, signature, sizes)
        assert isinstance(size, int)
        shape.append(size)
        origins.append(origin)
    return InputShape(name=spec.name, dtype=str(spec.dtype), shape=shape, dims=dims, origins=origins)


def _unknown(spec: TensorSpec, signature: Signature, sizes: Iterable[str]) -> InputError:
    """Say which sizes are missing, and how to give them."""
    known = set(sizes)
    missing = [
        dim
        for each in signature.inputs
        for axis, dim in enumerate(each.shape or ())
        if isinstance(dim, str) and dim not in known and not is_batch(signature, each, axis)
    ]
    names = list(dict.fromkeys(missing))
    nameless = spec.shape is None or any(
        dim is None and not is_batch(signature, spec, axis) for axis, dim in enumerate(spec.shape)
    )
    if nameless or not names:
        example = f'{{"{spec.name}": ({", ".join(["…"] * len(spec.shape or ("", "")))})}}'
        option = f"--shape {spec.name}={'x'.join(['…'] * len(spec.shape or ('', '')))}"
    else:
        example = "{" + ", ".join(f'"{name}": …' for name in names) + "}"
        option = " ".join(f"--shape {name}=…" for name in names)
    return InputError(
        "The size of an input is not known, and only that of a batch is assumed.",
        where=f"input {spec.name!r}",
        expected=f"sizes for {', '.join(names) or 'all axes'}",
        found=spec.describe(),
        hint=f"Give shapes={example} ({option}) or feeds of your own. FixShapes writes them into a model.",
        facts={"input": spec.name, "missing": tuple(names)},
    )
