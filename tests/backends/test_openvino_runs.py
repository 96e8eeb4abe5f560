"""What OpenVINO does while a graph runs: errors, inputs that are passed on, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import (
    CompileError,
    InferenceError,
    InputError,
)

pytest.importorskip("openvino")
HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
# Fails while it runs when the shape does not fit.
RESHAPE = HEADER + "r (float[N, 6] x, int64[2] s) => (float[A, B] y) { h = Relu(x) y = Reshape(h, s) }"


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def session(text: str, **options: object) -> ei.Session:
    return ei.load(ei.compile(model(text), "openvino", options=options))


# What a caller gave is the caller's


PASSED_ON = (
    HEADER
    + """p (float[N, 64] x) => (float16[N, 64] z, float[N, 64] y)
    { h = Cast<to = 10>(x) y = Cast<to = 1>(h) z = Mul(h, h) }"""
)


def test_no_later_call_writes_into_an_input_that_is_passed_on():
    # OpenVINO drops the Casts, and then wrote the output of a call into the input of the one before it.
    given = [np.random.default_rng(i).standard_normal((2 + i % 2, 64)).astype(np.float32) for i in range(8)]
    before = [array.copy() for array in given]
    with session(PASSED_ON) as loaded:
        found = [loaded.infer(array)["y"] for array in given]
    for array, kept, output in zip(given, before, found, strict=True):
        np.testing.assert_array_equal(array, kept)
        np.testing.assert_allclose(output, kept, rtol=1e-3)


@pytest.mark.parametrize("dim", ["N", "2"])
def test_an_input_keeps_its_name_behind_a_dropout(dim):
    # OpenVINO's importer gives the input the name of the Dropout's output.
    text = (
        HEADER
        + f"""d (float[{dim}] x, float[{dim}] z) => (float[{dim}] y, float[{dim}] w, float[{dim}] s)
        {{ y = Dropout(x) w = Dropout(z) s = Sub(x, w) }}"""
    )
    feed = {"x": np.array([5, 6], np.float32), "z": np.array([1, 2], np.float32)}
    with session(text) as loaded:
        found = loaded.infer(feed)
        assert [found[name].tolist() for name in "yws"] == [[5, 6], [1, 2], [4, 4]]
        with loaded.bind({"x": (2,), "z": (2,)}) as bound:
            for name, array in feed.items():
                bound.inputs[name][...] = array
            bound.run()
            assert [bound.outputs[name].tolist() for name in "yws"] == [[5, 6], [1, 2], [4, 4]]
            assert not np.shares_memory(bound.inputs["x"], bound.outputs["y"])


def test_a_name_that_cannot_be_told_is_refused():
    text = HEADER + "d (float[2] x, float[2] unused) => (float[2] y) { y = Dropout(x) }"
    with pytest.raises(CompileError, match="lost the name"):
        session(text)


# Errors while a graph runs: OpenVINO loses them on one thread, and the next run with the same shapes succeeds


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"threads": 2},
        {"threads": 1, "num_streams": 1},
        {"threads": 2, "num_streams": 2, "performance_hint": "throughput"},
    ],
    ids=str,
)
@pytest.mark.parametrize("export", [False, True])
def test_a_failed_run_is_an_error_each_time(options, export):
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    with session(RESHAPE, export=export, **options) as loaded:
        for shape in ([3, 4], [4, 3]):
            np.testing.assert_array_equal(loaded.infer({"x": x, "s": np.array(shape)})["y"], x.reshape(shape))
            for _ in range(2):
                with pytest.raises(InferenceError):
                    loaded.infer({"x": x, "s": np.array([5, 5])})
        np.testing.assert_array_equal(loaded.infer({"x": x, "s": np.array([4, 3])})["y"], x.reshape(4, 3))
        assert loaded.execution().layers


@pytest.mark.parametrize("threads", [1, 2])
def test_a_bound_run_that_failed_fails_again_and_recovers(threads):
    with session(RESHAPE, threads=threads) as loaded, loaded.bind({"x": (0, 6), "s": (2,)}) as bound:
        bound.run()  # 0 by 6 values in the shape (0, 0)
        bound.inputs["s"][...] = [5, 5]
        for _ in range(3):
            with pytest.raises(InferenceError):
                bound.run()
        bound.inputs["s"][...] = 0
        bound.run()
        assert bound.outputs["y"].shape == (0, 6)


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"threads": 1}, 12),
        # Without the waiting of `Overlapping` about one in 400 of these was wrong.
        ({"threads": 2, "num_streams": 2, "performance_hint": "throughput"}, 60),
    ],
    ids=["one stream", "two streams"],
)
def test_threads_that_fail_do_not_disturb_each_other(options, runs):
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(runs):
            shape = [[3, 4], [4, 3], [5, 5], [12, 1]][rng.integers(4)]
            try:
                found = loaded.infer({"x": x, "s": np.array(shape)})["y"]
            except InferenceError:
                found = None
            if (found is None) != (shape == [5, 5]) or (found is not None and found.shape != tuple(shape)):
                wrong.append((shape, found))

    with session(RESHAPE, **options) as loaded, ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert wrong == []


# Memory


GROWTH = """
import json, sys
import numpy as np, onnx.numpy_helper, onnx.parser, edgeinfer as ei
text = '<ir_version: 8, opset_import: ["": 17]> m (float[N, 64] x) => (float[N, 64] y) '
model = onnx.parser.parse_model(text + "{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }")
w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))

def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

with ei.load(ei.compile(model, "openvino", options=json.loads(sys.argv[1]))) as session:
    session.infer(np.ones((1, 64), np.float32))
    before = resident_mb()
    for rows in range(2, 600):
        session.infer(np.ones((rows, 64), np.float32))
    print(resident_mb() - before)
"""


def growth_mb(options: dict[str, object], **environment: str) -> float:
    command = [sys.executable, "-c", GROWTH, json.dumps(options)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_memory_does_not_grow_with_every_new_shape():
    vendors = {"properties": {"CPU_RUNTIME_CACHE_CAPACITY": 5000}}
    unbounded = growth_mb(vendors, ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
    assert growth_mb({}) < unbounded / 2


def test_a_default_that_a_blob_has_built_in_is_not_ignored():
    text = HEADER + "d (float[2] x, float[1] scale = {2}) => (float[2] y) { y = Mul(x, scale) }"
    with session(text, export=True) as loaded:
        x = np.ones(2, np.float32)
        assert loaded.infer(x)["y"].tolist() == [2, 2]
        with pytest.raises(InputError, match="built into"):
            loaded.infer({"x": x, "scale": np.array([5], np.float32)})
        assert loaded.infer(x)["y"].tolist() == [2, 2]
