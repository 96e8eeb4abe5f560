"""Latency of ONNX models in ONNX Runtime's CUDA provider, host to host: a peer of the TensorRT backend.

    python onnxruntime_cuda.py --batches 1,32 --models \\
        '{"a": {"files": {"float32": "a.onnx", "float16": "a16.onnx"}, "shapes": {"input": [1, 3, 8, 8]}}}'

Prints one JSON object a line. It runs in the interpreter that has onnxruntime-gpu, which need not be
edgeinfer's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


PRECISIONS = ("float32", "float16")
MODES = ("run", "CUDA graph")


def feeds_of(session: ort.InferenceSession, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {value.name: np.ones(shapes[value.name], DTYPES[value.type]) for value in session.get_inputs()}


def opened(path: Path, graph: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": str(int(graph))}
    session = ort.InferenceSession(str(path), options, providers=[("CUDAExecutionProvider", cuda)])
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("the CUDA provider did not load")
    return session


def captured(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    """A CUDA graph over buffers on the device, with the host copies that edgeinfer's latency includes."""
    binding = session.io_binding()
    inputs = {name: ort.OrtValue.ortvalue_from_numpy(feed, "cuda", 0) for name, feed in feeds.items()}
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    outputs = [ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for array in session.run(None, feeds)]
    for spec, value in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_ortvalue_output(spec.name, value)

    def run() -> None:
        for name, value in inputs.items():
            value.update_inplace(feeds[name])
        session.run_with_iobinding(binding)
        for value in outputs:
            value.numpy()

    return run


def median_ms(run: Callable[[], object], seconds: float) -> dict[str, Any]:
    for _ in range(10):
        run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 30:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99)), "runs": len(times)}


def with_batch(shapes: dict[str, list[int]], batch: int) -> dict[str, list[int]]:
    """A first axis of another size than 1 is no batch (the state of a recurrent model)."""
    return {name: [batch if shape[0] == 1 else shape[0], *shape[1:]] for name, shape in shapes.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=json.loads, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batches", default="1", help="sizes of the first axis, separated by commas")
    given = parser.parse_args()
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    end = time.monotonic() + given.seconds
    ways = itertools.product(given.models.items(), map(int, given.batches.split(",")), PRECISIONS, MODES)
    for (name, model), batch, precision, mode in ways:
        row = {
            "step": "onnxruntime cuda",
            "model": name,
            "precision": precision,
            "mode": mode,
            "batch": batch,
        }
        shapes = with_batch(model["shapes"], batch)
        try:
            if time.monotonic() > end:
                raise TimeoutError("out of time")  # noqa: TRY301
            graph = mode == "CUDA graph"
            session = opened(Path(model["files"][precision]), graph)
            feeds = feeds_of(session, shapes)
            run: Callable[[], object] = lambda s=session, f=feeds: s.run(None, f)  # noqa: E731
            row |= median_ms(captured(session, feeds) if graph else run, 0.7)
            row["onnxruntime"] = ort.__version__
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:400]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
