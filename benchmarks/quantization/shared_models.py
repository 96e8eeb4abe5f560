"""The shared models: their calibration feeds, and their evaluation tasks.

`eval_baseline.py` beside the models has a task for each; the calibration rows are what such a task feeds
to a model on its `calib` subset.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import shared_data
from shared_data import DATA

baselines = cache(shared_data.baselines)

Feed = dict[str, np.ndarray]
Run = Callable[..., Sequence[np.ndarray]]


def names() -> list[str]:
    """Return the names of all shared models."""
    return list(baselines().TASKS)


def path(name: str) -> Path:
    """Return the ONNX file of a model."""
    return DATA / "models" / f"{name}.onnx"


def ort_run(model: str | bytes, threads: int = 1) -> Run:
    """Return `run(feed, output names=None)` in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed, outputs=None: session.run(list(outputs) if outputs else None, feed)


def openvino_run(
    model: str | bytes, shapes: Mapping[str, Sequence[int]] | None = None, threads: int = 1
) -> Run:
    """Return `run(feed, output names=None)` in OpenVINO on the CPU, in float32 where nothing is quantized."""
    import io

    import openvino as ov

    core = ov.Core()
    graph = core.read_model(io.BytesIO(model) if isinstance(model, bytes) else model)
    if shapes:
        graph.reshape({name: list(shape) for name, shape in shapes.items()})
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    every = [output.get_any_name() for output in graph.outputs]

    def run(feed: Feed, outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        request.infer(feed, share_inputs=True)
        return [np.array(request.get_tensor(name).data) for name in (outputs or every)]

    return run


def _record(name: str, subset: str, run: Run | None, enough: int | None = None, rows: int = 0) -> list[Feed]:
    class Enough(Exception):  # noqa: N818 - it ends a recording, nothing went wrong
        pass

    feeds: list[Feed] = []

    def recording(feed: Feed, outputs: Sequence[str] | None = None) -> Sequence[np.ndarray]:
        feeds.append({key: np.array(value) for key, value in feed.items()})
        seen = sum(len(next(iter(each.values()))) for each in feeds)
        if enough is not None and len(feeds) >= enough and seen >= rows:
            raise Enough
        if run is not None:
            return run(feed, outputs)
        return [np.ones((len(next(iter(feed.values()))), 384), np.float32)]  # sentences need no answer

    with contextlib.suppress(Enough):
        baselines().TASKS[name][0](recording, subset)
    return feeds


@cache
def _calibration(name: str, count: int) -> tuple[Feed, ...]:
    if name.startswith("minilm"):
        # Batches come sorted by length: two rows of each of every length, with the padding between them.
        batches = _record(name, "calib", None)
        picked = batches[:: max(1, len(batches) * 2 // count)]
        return tuple({key: value[::31][:2] for key, value in feed.items()} for feed in picked)
    feeds = _record(name, "calib", ort_run(str(path(name))))
    rows = [
        {k: v[i : i + 1] for k, v in feed.items()}
        for feed in feeds
        for i in range(len(next(iter(feed.values()))))
    ]
    if name.startswith("silero"):
        rows = feeds  # the first axis of its state is no batch
    step = max(1, len(rows) // count)
    return tuple(rows[::step][:count])


def calibration(name: str, count: int = 100) -> list[Feed]:
    """Return up to `count` rows of calibration, spread over the calibration rows of the task."""
    return list(_calibration(name, count))


def evaluation_feeds(name: str, count: int = 16, rows: int = 200) -> list[Feed]:
    """Return the first feeds of the evaluation rows, at least so many and of so many rows, to compare on."""
    run = None if name.startswith("minilm") else ort_run(str(path(name)))
    return _record(name, "eval", run, count, rows)


def evaluate(name: str, run: Run) -> dict[str, float]:
    """Return the metrics of a model on its evaluation rows."""
    result: dict[str, float] = baselines().TASKS[name][0](run, "eval")
    return result


def example(name: str) -> Feed:
    """Return one feed for timing: noise where the model wants floats."""
    rng = np.random.default_rng(0)
    feed = baselines().TASKS[name][1]
    return {
        key: value if value.dtype.kind == "i" else rng.standard_normal(value.shape).astype(value.dtype)
        for key, value in feed.items()
    }
