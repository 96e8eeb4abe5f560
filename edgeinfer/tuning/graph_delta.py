"""The difference of two models as data: what is the same is named, what is new is written down.

    nodes:         [[0, 12], {…a new node…}, [13, 40]]       numbers: nodes of the model before
    initializers:  {"name": …, "same": true}                 the tensor of that name before
                   {"name": …, "take": [axis, indices]}      some channels of it
                   {"name": …, "data": sha256, …}            a new tensor, whose bytes are kept beside it

`patch` makes the second model from the first without computing anything, so it is the same on any machine.
Subgraphs and functions that changed are written down in full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.json_format import MessageToDict, ParseDict

from edgeinfer.model.model import Model

__all__ = ["diff", "patch"]

_LISTS = ("input", "output", "value_info", "quantization_annotation", "sparse_initializer")
_MESSAGES = {
    "input": onnx.ValueInfoProto,
    "output": onnx.ValueInfoProto,
    "value_info": onnx.ValueInfoProto,
    "quantization_annotation": onnx.TensorAnnotation,
    "sparse_initializer": onnx.SparseTensorProto,
}


def diff(before: Model, after: Model, tensors: dict[str, bytes]) -> dict[str, Any]:
    """Return what `patch` needs to make `after` from `before`.

    Args:
        before: The first model.
        after: The second.
        tensors: Where the bytes of new tensors are put, by their SHA-256.
    """
    old, new = before.to_proto(), after.to_proto()
    known = {value.name or "": value.const_value for value in before.ir.graph.initializers.values()}
    weights = {name: tensor for name, tensor in known.items() if tensor is not None}
    found: dict[str, Any] = {
        "ir_version": new.ir_version,
        "opset_import": [_plain(entry) for entry in new.opset_import],
        "metadata": {entry.key: entry.value for entry in new.metadata_props},
        "graph_name": new.graph.name,
        "graph_metadata": {entry.key: entry.value for entry in new.graph.metadata_props},
        "node": _list_delta(old.graph.node, new.graph.node),
        "initializer": [
            _tensor_delta(weights.get(proto.name), tensor_of(after, proto.name), proto, tensors)
            for proto in new.graph.initializer
        ],
        "functions": [_plain(function) for function in new.functions],
    }
    for name in _LISTS:
        found[name] = _list_delta(getattr(old.graph, name), getattr(new.graph, name))
    return found


def patch(before: Model, delta: Mapping[str, Any], tensors: Mapping[str, bytes]) -> Model:
    """Return the model that `diff` was given as `after`.

    Raises:
        KeyError, ValueError, TypeError: The delta does not fit; the caller says what that means.
    """
    old = before.to_proto()
    new = onnx.ModelProto(ir_version=delta["ir_version"])
    for entry in delta["opset_import"]:
        ParseDict(entry, new.opset_import.add())
    for key, value in delta["metadata"].items():
        new.metadata_props.add(key=key, value=value)
    for function in delta["functions"]:
        ParseDict(function, new.functions.add())
    graph = new.graph
    graph.name = delta["graph_name"]
    for key, value in delta["graph_metadata"].items():
        graph.metadata_props.add(key=key, value=value)
    graph.node.extend(_restored(old.graph.node, delta["node"], onnx.NodeProto))
    for name in _LISTS:
        getattr(graph, name).extend(_restored(getattr(old.graph, name), delta[name], _MESSAGES[name]))
    graph.initializer.extend(_tensor(before, entry, tensors) for entry in delta["initializer"])
    return Model.from_ir(ir.from_proto(new), path=before.path)


def tensor_of(model: Model, name: str) -> ir.TensorProtocol:
    """Return the weight of that name."""
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def _plain(message: Any) -> dict[str, Any]:
    plain: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return plain


def _list_delta(before: Iterable[Any], after: Iterable[Any]) -> list[Any]:
    places: dict[bytes, int] = {}
    for index, item in enumerate(before):
        places.setdefault(item.SerializeToString(deterministic=True), index)
    found: list[Any] = []
    for item in after:
        place = places.get(item.SerializeToString(deterministic=True))
        if place is None:
            found.append(_plain(item))
        elif found and isinstance(found[-1], list) and found[-1][1] == place:
            found[-1][1] = place + 1
        else:
            found.append([place, place + 1])
    return found


def _restored(before: Sequence[Any], delta: Iterable[Any], message: Any) -> list[Any]:
    found: list[Any] = []
    for entry in delta:
        found += before[entry[0] : entry[1]] if isinstance(entry, list) else [ParseDict(entry, message())]
    return found


def _tensor_delta(
    old: ir.TensorProtocol | None, new: ir.TensorProtocol, proto: onnx.TensorProto, tensors: dict[str, bytes]
) -> dict[str, Any]:
    if new.dtype is ir.DataType.STRING:
        return {"name": proto.name, "tensor": _plain(proto)}
    described = onnx.TensorProto()
    described.CopyFrom(proto)
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        described.ClearField(field)
    found: dict[str, Any] = {"name": proto.name, "tensor": _plain(described)}
    data = new.tobytes()
    if old is not None and old.dtype is new.dtype:
        if tuple(old.shape) == tuple(new.shape) and old.tobytes() == data:
            return {**found, "same": True}
        taken = _taken(old.numpy(), new.numpy())
        if taken is not None:
            return {**found, "take": taken}
    key = hashlib.sha256(data).hexdigest()
    tensors[key] = data
    return {**found, "data": key}


def _taken(old: np.ndarray, new: np.ndarray) -> list[Any] | None:
    """Return the axis and the indices by which `new` is taken from `old`, if it is."""
    if old.ndim != new.ndim:
        return None
    axes = [axis for axis in range(old.ndim) if old.shape[axis] != new.shape[axis]]
    if len(axes) != 1 or new.shape[axes[0]] > old.shape[axes[0]]:
        return None
    rows = [np.ascontiguousarray(np.moveaxis(array, axes[0], 0)) for array in (old, new)]
    places: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows[0]):
        places.setdefault(row.tobytes(), []).append(index)
    indices = []
    last = -1
    for row in rows[1]:
        later = [index for index in places.get(row.tobytes(), ()) if index > last]
        if not later:
            return None
        last = later[0]
        indices.append(last)
    return [axes[0], indices]


def _tensor(
    model: Model,
    entry: Mapping[str, Any],
    tensors: Mapping[str, bytes],
) -> onnx.TensorProto:
    name = entry["name"]
    proto: onnx.TensorProto = ParseDict(entry["tensor"], onnx.TensorProto())
    if "same" in entry:
        proto.raw_data = tensor_of(model, name).tobytes()
    elif "take" in entry:
        axis, indices = entry["take"]
        proto.raw_data = np.ascontiguousarray(
            np.take(tensor_of(model, name).numpy(), indices, axis=axis)
        ).tobytes()
    elif "data" in entry:
        proto.raw_data = tensors[entry["data"]]
    return proto
