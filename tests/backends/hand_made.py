"""Models and artifacts that are made by hand, so that they can be what no tool writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

import edgeinfer as ei
from edgeinfer.artifact.manifest import _digest

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
SECRET = b"0123456789abcdef"
X = np.zeros(16, np.uint8)


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.zeros(16, np.uint8), name)


def add(
    weights: list[TensorProto], nodes: list[onnx.NodeProto] | None = None, **more: Any
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"], name="add")]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.UINT8, [16])],
        [value("y", TensorProto.UINT8, [16])],
        weights,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)], **more)


def outside(tensor: TensorProto, location: str, **entries: object) -> TensorProto:
    """Make a tensor external."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def artifact_of(model: bytes, backend: str, folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write an artifact with that model, as somebody who can compute hashes would."""
    ei.compile(add([weight()]), backend).save(folder)
    for name, content in {"model.onnx": model, **(files or {})}.items():
        (folder / name).write_bytes(content)
    return sign(folder, files={"model.onnx": model, **(files or {})})


def sign(folder: Path, *, files: dict[str, bytes] | None = None, **changes: object) -> Path:
    path = folder / "manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["manifest_sha256"]
    for name, content in (files or {}).items():
        fields["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    fields |= changes
    path.write_text(json.dumps({**fields, "manifest_sha256": _digest(fields)}))
    return folder


def in_a_branch(location: str) -> onnx.ModelProto:
    def branch(tensor: TensorProto) -> onnx.GraphProto:
        nodes = [helper.make_node("Add", ["x", tensor.name], [f"{tensor.name}_y"])]
        output = helper.make_tensor_value_info(f"{tensor.name}_y", TensorProto.UINT8, [16])
        return helper.make_graph(nodes, "branch", [], [output], [tensor])

    branches = {
        "then_branch": branch(outside(weight("a"), location)),
        "else_branch": branch(weight("b")),
    }
    condition = numpy_helper.from_array(np.array(True), "c")
    return add([condition], [helper.make_node("If", ["c"], ["y"], **branches)])
