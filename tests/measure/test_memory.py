"""`memory`: a child process, its peak, and its failures."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import InferenceError, InputError, OptionsError
from edgeinfer.measure import memory

# 4096 x 4096 floats: 64 MiB that running must allocate.
OUTER = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    outer (float[M, 1] x, float[1, N] y) => (float[M, N] z) { z = MatMul(x, y) }"""
)


@pytest.fixture(scope="module")
def artifact():
    return ei.compile(OUTER, "onnxruntime")


def test_the_peak_grows_with_what_is_run(artifact, tmp_path):
    saved = artifact.save(tmp_path / "outer.edge")
    small = memory(saved, shapes={"M": 8, "N": 8}, runs=1)
    large = memory(tmp_path / "outer.edge", shapes={"M": 4096, "N": 4096}, runs=1)
    assert 0 < small.baseline_bytes <= small.loaded_bytes <= small.peak_bytes
    assert large.added_bytes - small.added_bytes > 48 << 20
    assert large.added_bytes < 256 << 20
    assert "baseline" in str(large)
    assert json.loads(json.dumps(large.to_dict()))["added_bytes"] == large.added_bytes


def test_a_feed_of_the_caller_is_used(artifact):
    feed = {"x": np.ones((3, 1), np.float32), "y": np.ones((1, 2), np.float32)}
    assert memory(artifact, feed, runs=2, options={"threads": 1}).runs == 2


def test_feeds_that_do_not_fit_are_refused_before_a_child_is_started(artifact):
    with pytest.raises(InputError, match="wrong shape"):
        memory(artifact, {"x": np.ones((3, 2), np.float32), "y": np.ones((1, 2), np.float32)})


def test_options_reach_the_child_and_what_goes_wrong_there_is_told(artifact):
    with pytest.raises(InferenceError, match="has no option 'nonsense'"):
        memory(artifact, shapes={"M": 1, "N": 1}, options={"nonsense": 1})


def test_the_shapes_that_were_run_are_shown(artifact):
    found = memory(artifact, shapes={"M": 2, "y": (1, 3)}, runs=1)
    assert [each.shape for each in found.inputs] == [(2, 1), (1, 3)]
    assert "x float32 (2, 1), M = 2 given" in str(found)
    assert "made-up inputs" in str(found)
    assert found.to_dict()["inputs"][0]["shape"] == [2, 1]


TEXT = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    g (string[N] s) => (string[N] t) { t = Identity(s) }"""
)


def test_text_reaches_the_child():
    found = memory(ei.compile(TEXT, "onnxruntime"), {"s": np.array(["a", "bc"], object)}, runs=1)
    assert found.inputs[0].shape == (2,)


def test_a_child_that_takes_too_long_is_ended(artifact):
    with pytest.raises(InferenceError, match="too long"):
        memory(artifact, shapes={"M": 1, "N": 1}, timeout_s=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": 0},
        {"runs": float("nan")},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"timeout_s": 0},
    ],
)
def test_numbers_out_of_range_are_refused(artifact, wrong):
    with pytest.raises(OptionsError):
        memory(artifact, **wrong)


def test_the_child_unpickles_nothing(tmp_path, artifact):
    saved = artifact.save(tmp_path / "outer.edge")
    np.savez(tmp_path / "feed.npz", x=np.array([{"a": 1}], dtype=object))
    request = {
        "artifact": str(saved.path),
        "feed": str(tmp_path / "feed.npz"),
        "runs": 1,
        "device": None,
        "options": None,
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgeinfer.runtime.memory_child"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "allow_pickle=False" in json.loads(done.stdout)["error"]
