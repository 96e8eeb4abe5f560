"""Running models in ONNX Runtime itself, with its optimizations off and nothing of ours in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime as ort
import pytest

from edgeinfer.model.model import Model

Run = Callable[[Model, Mapping[str, np.ndarray]], list[np.ndarray]]


@pytest.fixture(scope="session")
def run() -> Run:
    def run_model(model: Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
        return session.run(None, dict(feed))

    return run_model


@pytest.fixture
def parse() -> Callable[[str], Model]:
    import onnx.parser

    return lambda text: Model.load(onnx.parser.parse_model(text))
