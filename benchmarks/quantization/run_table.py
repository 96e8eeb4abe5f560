"""Accuracy, closeness and speed of quantized shared models, in ONNX Runtime and OpenVINO.

    python benchmarks/quantization/run_table.py [--backends onnxruntime,openvino] [--method mse] [MODEL ...]

For each model: the task's metric on the evaluation rows, the output's SQNR against the float model (in dB),
and the speed-up over the same runtime's float32 on one thread (see `speedup`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import shared_models as shared

from edgeinfer.model.model import Model
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.transforms import FuseBatchNorm, Pipeline, Simplify

METRIC = {"silero_vad_16k": "auc", "vww_mobilenetv1_025_96": "auc"}


def sqnr_db(float_outputs: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Return 10·log10(Σ signal² / Σ error²) over all rows, the mean over the model's outputs."""
    signal = np.sum([np.sum(a.astype(np.float64) ** 2) for a in float_outputs])
    error = np.sum(
        [np.sum((a.astype(np.float64) - b) ** 2) for a, b in zip(float_outputs, outputs, strict=True)]
    )
    return float(10 * np.log10(signal / max(error, 1e-30)))


def speedup(base: Callable[[], object], call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return how many times as fast as `base` a call is, and its time in milliseconds.

    The median over bursts that take turns. Time is processor time, which on one thread is the latency of an
    idle machine even where others are at work.
    """
    for each in (base, call):
        for _ in range(5):
            each()
    pairs = []
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end or len(pairs) < 9:
        pair = []
        for each in (base, call):
            burst = []
            for _ in range(5):
                started = time.process_time()
                each()
                burst.append(time.process_time() - started)
            pair.append(min(burst))
        pairs.append(pair)
    times = np.array(pairs)
    return float(np.median(times[:, 0] / times[:, 1])), 1e3 * float(np.median(times[:, 1]))


def runner(backend: str, model: bytes, name: str, fixed: bool) -> shared.Run:
    """Return `run` of one runtime on one thread."""
    if backend == "onnxruntime":
        return shared.ort_run(model)
    shapes = {key: value.shape for key, value in shared.example(name).items()} if fixed else None
    return shared.openvino_run(model, shapes)


def measure(name: str, backend: str, quantize: QuantizeStatic, *, accuracy: bool, seconds: float) -> str:
    """Return one line of the table."""
    model = Model.load(shared.path(name))
    steps = Pipeline((Simplify(), FuseBatchNorm(), quantize))
    started = time.perf_counter()
    quantized = steps.apply(model).model
    took = time.perf_counter() - started
    before, after = model.to_bytes(), quantized.to_bytes()
    run_float, run_int = runner(backend, before, name, False), runner(backend, after, name, False)
    pairs = [(run_float(feed), run_int(feed)) for feed in shared.evaluation_feeds(name)]
    closeness = [sqnr_db([a[i] for a, _ in pairs], [b[i] for _, b in pairs]) for i in range(len(pairs[0][0]))]
    feed = shared.example(name)
    fast_float, fast_int = runner(backend, before, name, True), runner(backend, after, name, True)
    ratio, int_ms = speedup(lambda: fast_float(feed), lambda: fast_int(feed), seconds)
    line = f"{name:24} {backend:12} SQNR {np.mean(closeness):5.1f} dB (worst {min(closeness):5.1f})  "
    line += f"{ratio:5.2f}x ({int_ms:.3f} ms)  made in {took:.1f} s"
    if accuracy:
        metrics = shared.evaluate(name, run_int)
        line += f"  {metrics_text(name, metrics)}"
    return line


def metrics_text(name: str, metrics: dict[str, float]) -> str:
    """Return the metric of the table, and the others behind it."""
    first = METRIC.get(name, next(iter(metrics)))
    rest = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items() if key != first)
    return f"{first} {metrics[first]:.4f} ({rest})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--backends", default="onnxruntime,openvino")
    parser.add_argument("--method", default="mse")
    parser.add_argument("--no-accuracy", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    for name in arguments.models or shared.names():
        samples = shared.calibration(name)
        for backend in arguments.backends.split(","):
            quantize = QuantizeStatic(calibration=samples, target=backend, method=arguments.method)
            accuracy = not arguments.no_accuracy
            print(measure(name, backend, quantize, accuracy=accuracy, seconds=arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
