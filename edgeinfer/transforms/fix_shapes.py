"""`FixShapes`: give inputs static shapes, by input name or by the name of a symbolic dimension."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias, final

import attrs
import onnx_ir as ir

from edgeinfer.errors import PreconditionError
from edgeinfer.model.onnx_inference import run_inference
from edgeinfer.model.shape_hints import forget_shapes
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["FixShapes"]

# What was fixed is remembered in the metadata, so that a symbol's name means something afterwards, too.
FIXED_KEY = "edgeinfer.fixed_dims"

Given: TypeAlias = "int | Sequence[int | str | None]"


def _plain(shapes: Mapping[str, Given]) -> dict[str, Given]:
    """Return the mapping with plain ints in it, whatever integers were given."""

    def plain(size: object) -> Any:
        if isinstance(size, bool) or not (size is None or isinstance(size, (str, SupportsIndex))):
            raise TypeError(f"a size is a whole number, not {size!r}")
        return operator.index(size) if isinstance(size, SupportsIndex) else size

    if not isinstance(shapes, Mapping):
        raise TypeError(f"shapes are given by name, such as {{'input': (1, 3, 224, 224)}}, not {shapes!r}")
    found: dict[str, Given] = {}
    for name, given in shapes.items():
        if isinstance(given, str) or given is None:
            raise TypeError(f"the size of {name!r} is a whole number or a shape, not {given!r}")
        if isinstance(given, Iterable):
            found[str(name)] = tuple(plain(size) for size in given)
        else:
            found[str(name)] = plain(given)
    return found


@final
@attrs.frozen
class FixShapes(GraphTransform):
    """Make dimensions static and infer all other shapes again, those of the outputs included.

    Args:
        shapes: Shapes by input name, such as `{"input": (1, 3, 224, 224)}`, and sizes by the name of a
            symbolic dimension, such as `{"N": 1}`. In a shape, None, -1 or the symbol's own name leaves a
            dimension as it is. A symbol is fixed wherever it occurs.

    Raises (in `apply`):
        PreconditionError: A name is unknown, the rank is another, two sizes are given for one dimension, a
            dimension is already fixed to another size, or the graph cannot take the shape.
    """

    shapes: Mapping[str, Given] = attrs.field(factory=dict, converter=_plain)

    changes_signature = True
    inlines_functions = False

    def config(self) -> dict[str, object]:
        """Return the shapes as lists."""
        return {"shapes": {k: v if isinstance(v, int) else list(v) for k, v in self.shapes.items()}}

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Bind the symbols, write the shapes and infer."""
        graph = model.graph
        inputs = {value.name or "": value for value in graph.inputs if value.name not in graph.initializers}
        sizes = _Sizes(inputs, json.loads(model.metadata_props.get(FIXED_KEY, "{}")))
        for name, given in self.shapes.items():
            if isinstance(given, int):
                sizes.bind_symbol(name, given)
            else:
                sizes.bind_input(name, tuple(given))
        before = {value: value.shape for value in (*inputs.values(), *graph.outputs)}
        for name, value in inputs.items():
            value.shape = sizes.fixed(name)
        if all(value.shape == before[value] for value in inputs.values()):
            for name in self.shapes:
                report.skip(name, "it has this shape already")
            return
        forget_shapes(model)  # what was inferred or stated for other sizes
        _infer(model)
        for value in graph.outputs:
            value.shape = _merged(value, sizes.substituted(before[value]))
        for value in (*inputs.values(), *graph.outputs):
            if value.shape != before[value]:
                report.apply(value.name or "", f"shape {_text(before[value])} is now {_text(value.shape)}")
        model.metadata_props[FIXED_KEY] = json.dumps(sizes.symbols, sort_keys=True)
        left = sizes.left()
        if left:
            report.note(f"still symbolic: {', '.join(left)}")


class _Sizes:
    """The sizes given, checked against the inputs and each other."""

    def __init__(self, inputs: Mapping[str, ir.Value], fixed: dict[str, int]) -> None:
        self._inputs = inputs
        self.symbols = dict(fixed)
        self._unnamed: dict[tuple[str, int], int] = {}
        self._whole: dict[str, ir.Shape] = {}
        self._known = dict.fromkeys(
            dim.value
            for value in inputs.values()
            for dim in value.shape or ()
            if not isinstance(dim, int) and dim.value is not None
        ) | dict.fromkeys(fixed)

    def bind_symbol(self, name: str, size: int) -> None:
        if name not in self._known:
            is_input = name in self._inputs
            raise PreconditionError(
                f"A size was given for {name!r}, which is {'an input' if is_input else 'unknown'}.",
                where=f"FixShapes, {name!r}",
                expected=f"a symbolic dimension: {', '.join(map(str, self._known)) or 'there is none'}",
                found=size,
                hint="Give a complete shape for an input."
                if is_input
                else f"The inputs are {', '.join(self._inputs)}.",
            )
        _check_size(size, name)
        first = self.symbols.setdefault(name, size)
        if first != size:
            raise PreconditionError(
                f"Two sizes were given for the symbolic dimension {name!r}.",
                where=f"FixShapes, {name!r}",
                expected=first,
                found=size,
                hint="All axes with this name have one size; give it once.",
            )

    def bind_input(self, name: str, shape: tuple[int | str | None, ...]) -> None:
        value = self._inputs.get(name)
        if value is None:
            raise PreconditionError(
                f"The model has no input {name!r}.",
                where=f"FixShapes, {name!r}",
                expected=f"one of {', '.join(self._inputs)}",
                found=name,
                hint="Give a plain number, not a shape, to fix a symbolic dimension."
                if name in self._known
                else "Model.load(path).signature.describe() lists the inputs.",
            )
        if value.shape is None:
            for size in shape:
                if isinstance(size, int) and size != -1:
                    _check_size(size, name)
            self._whole[name] = ir.Shape([None if size == -1 else size for size in shape])
            return
        if len(shape) != len(value.shape):
            raise PreconditionError(
                "The shape has another rank than the input.",
                where=f"FixShapes, input {name!r}",
                expected=f"{len(value.shape)} dimensions, {_text(value.shape)}",
                found=f"{len(shape)} dimensions, {shape}",
                hint="Count the batch axis, too.",
            )
        for axis, (dim, size) in enumerate(zip(value.shape, shape, strict=True)):
            if isinstance(size, str) and (isinstance(dim, int) or size != dim.value):
                raise PreconditionError(
                    "A dimension has another name.",
                    where=f"FixShapes, input {name!r}, axis {axis}",
                    expected=str(dim),
                    found=size,
                    hint="Give a number, or None to leave it.",
                )
            if not isinstance(size, int) or size == -1:
                continue
            _check_size(size, f"{name}, axis {axis}")
            if isinstance(dim, int):
                if dim != size:
                    raise PreconditionError(
                        "A dimension is already fixed to another size.",
                        where=f"FixShapes, input {name!r}, axis {axis}",
                        expected=dim,
                        found=size,
                        hint="Export the model with a symbolic dimension there to be free to choose.",
                    )
            elif dim.value is not None:
                self.bind_symbol(dim.value, size)
            else:
                self._unnamed[name, axis] = size

    def fixed(self, name: str) -> ir.Shape | None:
        """Return the shape of an input with everything that was given."""
        if name in self._whole:
            return self._whole[name]
        shape = self.substituted(self._inputs[name].shape)
        if shape is None:
            return None
        return ir.Shape([self._unnamed.get((name, axis), dim) for axis, dim in enumerate(shape)])

    def substituted(self, shape: ir.Shape | None) -> ir.Shape | None:
        """Return the shape with the symbols that were given."""
        if shape is None:
            return None
        return ir.Shape([d if isinstance(d, int) else self.symbols.get(d.value or "", d) for d in shape])

    def left(self) -> list[str]:
        """Return the symbols that have no size."""
        return [str(name) for name in self._known if name not in self.symbols]


def _check_size(size: int, where: str) -> None:
    if isinstance(size, bool) or size < 1:
        raise PreconditionError(
            "A size must be a positive number.", where=f"FixShapes, {where}", expected="1 or more", found=size
        )


def _infer(model: ir.Model) -> None:
    """Infer the shapes that are not known, like `onnx_ir`'s pass, but do not pass over an error."""
    for value in model.graph.outputs:
        value.shape = None
    try:
        run_inference(model, data_prop=True, strict=True)
    except Exception as error:
        raise PreconditionError(
            f"The graph cannot take these shapes: {str(error).strip()}",
            where="FixShapes",
            hint="Choose the size that the model was exported for, or export it with a symbolic one.",
        ) from error
    _check_reshapes(model)


def _check_reshapes(model: ir.Model) -> None:
    """Find a Reshape to a shape that was exported for another size, which inference passes over."""
    for node in model.graph.all_nodes():
        if node.op_type != "Reshape" or node.domain or node.inputs[0] is None:
            continue
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if before is None or after is None or not (before.is_static() and after.is_static()):
            continue
        if math.prod(before.numpy()) != math.prod(after.numpy()):
            raise PreconditionError(
                f"The graph cannot take these shapes: {node.name} reshapes to a size that is fixed.",
                where=f"FixShapes, node {node.name!r}",
                expected=_text(after),
                found=_text(before),
                hint="Choose the size that the model was exported for, or export it with a symbolic one.",
            )


def _merged(value: ir.Value, declared: ir.Shape | None) -> ir.Shape | None:
    """Return an output's declared shape with what inference found out."""
    inferred = value.shape
    if declared is None or inferred is None:
        return inferred or declared
    if len(declared) != len(inferred):
        raise _contradiction(value, declared, inferred)
    dims: list[int | ir.SymbolicDim] = []
    for old, new in zip(declared, inferred, strict=True):
        if isinstance(old, int) and isinstance(new, int) and old != new:
            raise _contradiction(value, declared, inferred)
        dims.append(new if isinstance(new, int) else old)
    return ir.Shape(dims)


def _contradiction(value: ir.Value, declared: ir.Shape, inferred: ir.Shape) -> PreconditionError:
    return PreconditionError(
        "The graph gives another output shape than it declares.",
        where=f"FixShapes, output {value.name!r}",
        expected=_text(declared),
        found=_text(inferred),
        hint="The model was exported for one size only; fix its inputs to that size.",
    )


def _text(shape: ir.Shape | None) -> str:
    if shape is None:
        return "(any shape)"
    return "(" + ", ".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in shape) + ")"
