"""What several tests of sessions share: small models, feeds, and a runner that is none of a vendor's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser

import edgeinfer as ei
from edgeinfer.artifact.manifest import FileEntry, Golden, Manifest
from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.runtime.session import Session

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
STATIC = (
    HEADER
    + "a (float[2, 3] x, float[2, 3] z) => (float[2, 3] y, float[2, 3] w) { y = Add(x, z) w = Sub(x, z) }"
)
DYNAMIC = HEADER + "a (float[N, 3] x) => (float[N, 3] y) { y = Mul(x, x) }"
BACKENDS = ("onnxruntime", "openvino")


def load(text: str, backend: str, **options: Any) -> Session:
    return ei.load(ei.compile(onnx.parser.parse_model(text), backend), **options)


def feeds(count: int, shape: tuple[int, ...] = (4, 3)) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full(shape, i, np.float32)} for i in range(count)]


class FakeRunner:
    """Not thread-safe, without bound mode; checks that one thread is in it at a time."""

    thread_safe = False

    def __init__(self) -> None:
        self.inside = 0
        self.closed = False

    def run(self, feeds, /):
        assert self.inside == 0
        self.inside += 1
        try:
            if feeds["x"][0] < 0:
                raise ValueError("the vendor's complaint")
            return [feeds["x"] * 2]
        finally:
            self.inside -= 1

    def close(self) -> None:
        self.closed = True


def fake_session(golden: Golden | None = None) -> Session:
    spec = TensorSpec(name="x", dtype=np.float32, shape=(3,))
    signature = Signature(inputs=[spec], outputs=[TensorSpec(name="y", dtype=np.float32, shape=(3,))])
    manifest = Manifest(
        kind="portable",
        backend="fake",
        entry="m",
        files={"m": FileEntry(sha256="0" * 64, size=1)},
        signature=signature,
        golden=golden,
    )
    return Session(FakeRunner(), manifest)
