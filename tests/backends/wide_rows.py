"""What the tests of copies and outputs of TensorRT share: models with wide rows, and what the fake noted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser

import edgeinfer as ei

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
WIDTH = 65536  # a row is 256 KiB of float32: beyond what is copied by way of the slot
BIG = HEAD + f"g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ y = Neg(x) }}"
WIDE_IN = HEAD + f"g (float[1,{WIDTH}] x) => (float[1,1] y) {{ y = ReduceMax<axes=[1]>(x) }}"
NONZERO = HEAD + f"g (float[{WIDTH}] x) => (int64[1,K] y) {{ y = NonZero(x) }}"
SMALL = HEAD + "g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }"
DIMS = {"dims": {"N": (1, 2, 64)}}


def session(text: str = BIG, build: Any = None, **load: object) -> ei.Session:
    options = DIMS if text == BIG and build is None else build
    return ei.load(ei.compile(onnx.parser.parse_model(text), "tensorrt", options=options), options=load)


def rows(value: float, count: int = 1) -> np.ndarray:
    made = np.full((count, WIDTH), value, np.float32)
    made += np.arange(WIDTH, dtype=np.float32) / 2**20
    return made


def locked(fake: SimpleNamespace) -> int:
    return sum(block.kind == "registered" for block in fake.cuda.memory.values())


def copies_in(fake: SimpleNamespace, mark: int) -> list[int]:
    return [event[2] for event in fake.cuda.events[mark:] if event[:2] == ("cudaMemcpyAsync", "to device")]
