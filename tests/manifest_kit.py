"""An artifact, and its manifest as JSON that a test may change: what the tests of manifests share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx.parser

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact, Cost
from edgeinfer.artifact.manifest import _digest, decode_manifest
from edgeinfer.transforms import Simplify

NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 2] x) => (float[N, 2] y) { i = Identity(x) y = Add(i, i) }"""


def small_artifact() -> Artifact:
    """Return an artifact with a cost, a history and golden inputs."""
    model = ei.optimize(onnx.parser.parse_model(NET), [Simplify()], target="onnxruntime")
    feed = {"x": np.ones((1, 2), np.float32)}
    compiled = ei.compile(model, options={"threads": 1}).with_cost(Cost(latency_p50_ms=1.5))
    return compiled.with_golden(feed, {"y": 2 * feed["x"]}, rtol=1e-3, atol=0)


def unsigned(text: bytes) -> dict[str, Any]:
    """Return the JSON of a manifest without its hash."""
    fields: dict[str, Any] = json.loads(text)
    del fields["manifest_sha256"]
    return fields


def signed(fields: Any) -> bytes:
    """Return the manifest of these fields, with the hash that belongs to them."""
    return json.dumps({**fields, "manifest_sha256": _digest(fields)}).encode()


def decode(fields: Any) -> Any:
    """Return the manifest of these fields as it is read."""
    return decode_manifest(signed(fields), where="manifest.json")
