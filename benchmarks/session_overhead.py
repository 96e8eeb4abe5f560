"""What a session costs over the raw runtime, as ratios in interleaved runs.

    python benchmarks/session_overhead.py [--model mobilenet_v2.onnx] [--rounds 60]

1. `infer` on a one-Add model against `InferenceSession.run` and OpenVINO's `compiled_model(x)`.
2. Bound mode against a raw IOBinding and against raw preset tensors with `infer()`.
3. With `--model`: p99/p50 of a session that is pinned to one core, one thread.
"""

from __future__ import annotations

import argparse
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort
import openvino as ov

import edgeinfer as ei

ONE_ADD = """
<ir_version: 8, opset_import: ["": 17]>
one_add (float[1, 8] x) => (float[1, 8] y) { y = Add(x, x) }
"""
CALLS = 100


def timings(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Microseconds a call: the lower quartile of rounds in which all take turns.

    Not the median, because on a shared machine half of the rounds can be disturbed.
    """
    for function in functions.values():
        timeit.timeit(function, number=500)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(timeit.timeit(function, number=CALLS) / CALLS * 1e6)
    return {name: float(np.quantile(values, 0.25)) for name, values in times.items()}


def onnxruntime_overhead(model: bytes, rounds: int) -> None:
    x = np.ones((1, 8), np.float32)
    x_buffer, y_buffer = np.ones((1, 8), np.float32), np.empty((1, 8), np.float32)
    raw = ort.InferenceSession(model, ort.SessionOptions(), providers=["CPUExecutionProvider"])
    binding = raw.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x_buffer.shape, x_buffer.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y_buffer.shape, y_buffer.ctypes.data)
    with ei.load(ei.compile(model, "onnxruntime")) as session:
        found = timings(
            {
                "InferenceSession.run": lambda: raw.run(None, {"x": x}),
                "session.infer": lambda: session.infer({"x": x}),
                "IOBinding": lambda: raw.run_with_iobinding(binding),
                "bound session": session.bind().run,
            },
            rounds,
        )
    show("ONNX Runtime", found)
    compare(found, "session.infer", "InferenceSession.run", 1.0)
    compare(found, "bound session", "IOBinding", 1.3)


def openvino_overhead(model: bytes, rounds: int) -> None:
    """The vendor's default pins the calling thread on each call; without that it is a harder rival."""
    x = np.ones((1, 8), np.float32)
    x_buffer, y_buffer = np.ones((1, 8), np.float32), np.empty((1, 8), np.float32)
    core = ov.Core()
    latency = {"PERFORMANCE_HINT": "LATENCY"}
    read = core.read_model(model)
    default = core.compile_model(read, "CPU", latency)
    same = core.compile_model(
        read, "CPU", {**latency, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    )
    request = same.create_infer_request()
    x_tensor, y_tensor = (ov.Tensor(buffer, shared_memory=True) for buffer in (x_buffer, y_buffer))
    request.set_input_tensor(x_tensor)
    request.set_output_tensor(y_tensor)
    with ei.load(ei.compile(model, "openvino")) as session:
        found = timings(
            {
                "compiled_model(x)": lambda: default(x),
                "compiled_model(x), our options": lambda: same(x),
                "session.infer": lambda: session.infer({"x": x}),
                "preset tensors, infer()": request.infer,
                "bound session": session.bind().run,
            },
            rounds,
        )
    show("OpenVINO", found)
    compare(found, "session.infer", "compiled_model(x)", 0.5)
    compare(found, "session.infer", "compiled_model(x), our options", 0.5)
    compare(found, "bound session", "preset tensors, infer()", 1.3)


def show(title: str, found: dict[str, float]) -> None:
    print(f"{title}, one Add")
    for name, value in found.items():
        print(f"  {name:50s} {value:7.2f} µs")


def compare(found: dict[str, float], ours: str, raw: str, limit: float) -> None:
    print(f"  {ours + ' / ' + raw:50s} {found[ours] / found[raw]:7.2f}    (limit {limit})")


def jitter(path: Path, runs: int) -> None:
    """p99/p50 of one thread pinned to a core, and of the same free; the two take turns."""
    for backend in ("onnxruntime", "openvino"):
        artifact = ei.compile(path, backend, options={"threads": 1})
        free, pinned = ei.load(artifact), ei.load(artifact, pin_cores=0)
        spec = free.signature.inputs[0]
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        bound = {"free": free.bind({spec.name: shape}), "pinned": pinned.bind({spec.name: shape})}
        for name, one in bound.items():
            ratios = []
            for _ in range(3):
                times = np.array([timeit.timeit(one.run, number=1) for _ in range(runs)])[runs // 10 :]
                p50, p99 = np.percentile(times, (50, 99))
                ratios.append(p99 / p50)
            print(f"{backend:12s} {name:7s} p50 {p50 * 1e3:6.2f} ms, p99/p50 {min(ratios):.3f} best of 3")
        free.close()
        pinned.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model for the jitter of a pinned session")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    model = onnx.parser.parse_model(ONE_ADD).SerializeToString()
    onnxruntime_overhead(model, arguments.rounds)
    openvino_overhead(model, arguments.rounds)
    if arguments.model is not None:
        jitter(arguments.model, arguments.runs)


if __name__ == "__main__":
    main()
