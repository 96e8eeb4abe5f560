"""Which tensors tell how close a version of a model is to float.

The outputs, where they are numbers of a known size. An output whose size depends on the data, such as the
boxes that NonMaxSuppression leaves, has other rows in float than in int8; an index, a flag or a text is right
or wrong, which says little in few feeds. In place of such outputs the float tensors are scored that they are
computed from.
"""

from __future__ import annotations

from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.graph.constants import constant_value
from edgeinfer.graph.data_sizes import data_dependent_sizes
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.prepare import prepare
from edgeinfer.values import as_tuple

__all__ = ["ScoredTensors", "scored_tensors"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@final
@attrs.frozen(kw_only=True)
class ScoredTensors:
    """What is compared.

    Attributes:
        names: The tensors, outputs of the model first.
        replaced: The outputs that are not among them, and why, as sentences.
        are_outputs: Whether they are the model's outputs, all and in their order.
    """

    names: tuple[str, ...] = attrs.field(converter=as_tuple)
    replaced: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    are_outputs: bool = True


def scored_tensors(model: Model) -> ScoredTensors:
    """Return what to compare versions of a model by."""
    work = model.copy_ir()
    prepare(work)
    graph = work.graph
    sized_by = data_dependent_sizes(graph)
    outputs = list(graph.outputs)
    reasons = {value: reason for value in outputs if (reason := _reason(value, sized_by)) is not None}
    if not reasons:
        return ScoredTensors(names=[str(value.name) for value in outputs])
    names = [str(value.name) for value in outputs if value not in reasons]
    replaced = []
    for value, reason in reasons.items():
        front = [str(other.name) for other in _in_front_of(value, sized_by)]
        if front:
            names += front
            where = f"{', '.join(map(repr, front))} in front of it"
        elif names or len(reasons) > 1:
            where = "nothing in front of it is a number that changes"
        else:
            names.append(str(value.name))
            continue
        replaced.append(f"output {value.name!r} {reason}: {where}")
    if not names:  # right or wrong is better than nothing
        return ScoredTensors(names=[str(v.name) for v in outputs if v.dtype is not ir.DataType.STRING])
    unique = tuple(dict.fromkeys(names))
    same = unique == tuple(str(value.name) for value in outputs)
    return ScoredTensors(names=unique, replaced=replaced, are_outputs=same)


def _reason(value: ir.Value, sized_by: dict[ir.Value, str]) -> str | None:
    """Say why an output is not scored itself, or None."""
    if value in sized_by:
        return f"is of a size that depends on the data (by {sized_by[value]!r})"
    if value.dtype is not None and value.dtype not in _FLOATS:
        return f"is {value.dtype.name.lower()}, not a number that comes closer"
    return None


def _in_front_of(value: ir.Value, sized_by: dict[ir.Value, str]) -> list[ir.Value]:
    """Return the nearest float tensors of a known size that a value is computed from, inputs left out."""
    found: dict[ir.Value, None] = {}
    front, seen = [value], {value}
    while front:
        node = front.pop(0).producer()
        for source in node.inputs if node is not None else ():
            if source is None or source in seen or source.producer() is None:
                continue
            seen.add(source)
            if constant_value(source) is not None:
                continue
            if source.dtype in _FLOATS and source not in sized_by:
                found[source] = None
            else:
                front.append(source)
    return list(found)
