"""What a person does wrong, and what strange but valid models do: a typed error, or the right answer."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from pathlib import Path

import attrs
import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.manifest import Cost
from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.registry import get_backend, install_command
from edgeinfer.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactSaveError,
    BackendUnavailableError,
    InputError,
    InvalidModelError,
    ModelError,
    ModelLoadError,
    OptionsError,
    TransformError,
    UnsupportedModelError,
)
from edgeinfer.transforms import Simplify, TransformReport

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
X = np.array([1, 2], np.float32)


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


ADD = parse("g (float[2] x) => (float[2] y) { y = Add(x, x) }")
STRINGS = parse("g (string[N] x) => (string[N] y) { y = Identity(x) }")


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize("size", [2, 20_000], ids=["small", "large"])
def test_an_input_that_is_an_output_too(backend, size):
    model = parse(f"g (float[{size}] x) => (float[{size}] y, float[{size}] x) {{ y = Add(x, x) }}")
    feed = np.arange(size, dtype=np.float32)
    with ei.load(ei.compile(ei.optimize(model, [Simplify()]), backend)) as session:
        outputs = session.infer(feed)
        np.testing.assert_array_equal(outputs["x"], feed)
        np.testing.assert_array_equal(outputs["y"], 2 * feed)
        assert not np.shares_memory(outputs["x"], feed)  # outputs belong to the caller
        bound = session.bind()
        for factor in (1, 3):
            bound.inputs["x"][...] = factor * feed
            bound.run()
            np.testing.assert_array_equal(bound.outputs["x"], factor * feed)
            np.testing.assert_array_equal(bound.outputs["y"], 2 * factor * feed)


def test_an_output_of_unknown_rank(backend):
    proto = parse("g (float[1, 2] x) => (float y) { y = Relu (x) }")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with ei.load(ei.compile(ei.optimize(proto, [Simplify()]), backend)) as session:
        assert session.signature.outputs[0].shape is None
        np.testing.assert_array_equal(session.infer(X[None])["y"], X[None])
        bound = session.bind()
        bound.inputs["x"][...] = X
        bound.run()
        np.testing.assert_array_equal(bound.outputs["y"], X[None])


def test_an_input_of_unknown_rank(tmp_path):
    """OpenVINO's CPU plugin refuses such a model and says so."""
    proto = parse("g (float[2] x) => (float[2] y) { a = Identity (x)  y = Relu (a) }")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    model = ei.optimize(proto, [Simplify()])
    saved = ei.compile(model, "onnxruntime").save(tmp_path / "any.edge")
    with ei.load(saved.path or "") as session:
        assert "any shape" in session.signature.describe()
        for shape in ((2,), (2, 3), ()):
            found = session.infer({"x": np.full(shape, -1, np.float32)})["y"]
            np.testing.assert_array_equal(found, np.zeros(shape, np.float32))
        bound = session.bind({"x": (1, 2)})
        bound.inputs["x"][...] = X
        bound.run()
        np.testing.assert_array_equal(bound.outputs["y"], X[None])


@pytest.mark.parametrize(
    "values",
    [np.array([1, "a"], object), np.array([None], object), np.array([b"a"], object), np.array([b"a"])],
    ids=["number", "None", "bytes", "S"],
)
def test_what_is_no_string_is_not_turned_into_one(values):
    with ei.load(ei.compile(STRINGS, "onnxruntime")) as session:
        with pytest.raises(InputError, match="wrong dtype"):
            session.infer({"x": values})
        assert session.infer({"x": np.array(["a", "ü"])})["y"].tolist() == ["a", "ü"]


def test_sequences_are_refused_with_their_name(backend):
    model = parse("g (float[4] x) => (seq(float[2]) y) { y = SplitToSequence(x) }")
    with pytest.raises(UnsupportedModelError, match="not a tensor") as caught:
        ei.compile(model, backend)
    assert caught.value.where == "output 'y'"


@pytest.mark.parametrize("text", ["garbage", "3", '[{"name": "Simplify", "later": 1}]'])
def test_a_history_that_is_none(text):
    model = onnx.ModelProto()
    model.CopyFrom(ADD)
    model.metadata_props.add(key="edgeinfer.history", value=text)
    with pytest.raises(InvalidModelError, match="history cannot be read"):
        ei.compile(model, "onnxruntime")


def test_paths_that_no_system_has(tmp_path):
    with pytest.raises(ModelLoadError, match="null byte"):
        ei.Model.load("a\0b")
    with pytest.raises(ModelError, match="null byte"):
        ei.Model.load(ADD).save(tmp_path / "a\0b")
    with pytest.raises(ArtifactSaveError, match="null byte"):
        ei.compile(ADD, "onnxruntime").save(tmp_path / "a\0b")


def test_the_verbs_say_what_they_take():
    artifact = ei.compile(ADD, "onnxruntime")
    with pytest.raises(ArtifactFormatError, match="not an artifact") as caught:
        ei.load(ei.Model.load(ADD))  # type: ignore[arg-type]
    assert "ei.compile" in str(caught.value)
    with pytest.raises(InputError, match="not a session") as caught_infer:
        ei.infer(artifact, X)  # type: ignore[arg-type]
    assert "ei.load" in str(caught_infer.value)


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    pytest.importorskip("openvino")
    from edgeinfer.backends.openvino_ import backend as openvino_
    from edgeinfer.backends.openvino_ import process

    real = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name.split(".")[0] == "openvino":
            raise ImportError("No module named 'openvino'")
        return real(name, *rest, **named)  # type: ignore[arg-type]

    openvino_._capabilities.cache_clear()
    process._process.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailableError, match="not available here") as caught:
        ei.compile(ADD, "openvino")
    assert 'pip install "edgeinfer[openvino]"' in str(caught.value)


def test_an_option_that_no_manifest_can_hold(tmp_path):
    payload = Payload(entry="m", files={"m": b""}, options={"folder": tmp_path})
    with pytest.raises(OptionsError, match="cannot be kept"):
        ei.Artifact.of_payload(payload, model=ei.Model.load(ADD), backend="theirs", backend_version="")


@pytest.mark.parametrize("shapes", [{"z": (2,)}, ["x"], {"x": "ab"}, {"x": 3}, {"x": (-1,)}])
def test_shapes_that_are_none(shapes):
    model = parse("g (float[N] x) => (float[N] y) { y = Add(x, x) }")
    with ei.load(ei.compile(model, "onnxruntime")) as session, pytest.raises(InputError):
        session.bind(shapes)


def test_requests_in_flight_are_counted():
    with ei.load(ei.compile(ADD, "onnxruntime")) as session, pytest.raises(OptionsError):
        session.stream([X], in_flight="2")  # type: ignore[arg-type]


class Raises:
    """A third party's transform with a defect."""

    def apply(self, model: ei.Model, /) -> tuple[ei.Model, TransformReport]:
        raise ValueError("boom")


def test_what_a_foreign_transform_raises_is_wrapped():
    with pytest.raises(TransformError, match="Raises failed: ValueError: boom") as caught:
        ei.optimize(ADD, [Raises()])
    assert isinstance(caught.value.__cause__, ValueError)


@attrs.frozen
class Takes:
    """A transform that keeps what it was handed."""

    seen: list[object]
    target: object = None
    calibration: object = None

    def apply(self, model: ei.Model, /) -> tuple[ei.Model, TransformReport]:
        self.seen.append((str(self.target), self.calibration))
        return Simplify().apply(model)


def test_target_and_calibration_reach_the_steps_of_a_pipeline():
    seen: list[object] = []
    samples = [{"x": X}]
    pipeline = ei.Pipeline([ei.Pipeline([Takes(seen)])])
    ei.optimize(ADD, pipeline, target="onnxruntime", calibration=samples)
    assert seen == [("onnxruntime", samples)]


def test_a_graph_that_cannot_be_read_says_why():
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "abc")):
        weight.external_data.add(key=key, value=value)
    with pytest.raises(InvalidModelError, match=r"cannot be read: .*abc"):
        ei.Model.load(model)


def test_a_model_does_not_follow_the_proto_that_it_came_from():
    proto = parse("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
    model = ei.Model.load(proto)
    proto.graph.initializer[0].float_data[0] = 99
    with ei.load(ei.compile(model, "onnxruntime")) as session:
        assert session.infer(0 * X)["y"].tolist() == [1, 2]


def test_what_to_install_is_what_there_is():
    assert install_command("openvino") == 'pip install "edgeinfer[openvino]"'
    assert install_command("onnxruntime") == "pip install onnxruntime"
    assert "edgeinfer[" not in install_command("somebody-elses")


# Saving


def test_saving_through_a_link_replaces_what_it_points_to(tmp_path):
    artifact = ei.compile(ADD, "onnxruntime")
    artifact.save(tmp_path / "real.edge")
    (tmp_path / "link.edge").symlink_to("real.edge")
    changed = artifact.with_cost(Cost(latency_p50_ms=1.0))
    changed.save(tmp_path / "link.edge")
    assert (tmp_path / "link.edge").is_symlink()
    assert ei.Artifact.open(tmp_path / "real.edge").digest == changed.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.edge", "real.edge"]


SAVE_AT = """
import sys, time, edgeinfer as ei
artifact = ei.compile(sys.argv[1], "onnxruntime")
for number in range(20):
    time.sleep(max(0.0, float(sys.argv[2]) + number * 0.05 - time.time()))
    artifact.save(f"{sys.argv[3]}/{number}.edge")
"""


def test_two_processes_save_to_one_path(tmp_path):
    model = ei.Model.load(ADD).save(tmp_path / "add.onnx")
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-c", SAVE_AT, str(model), str(time.time() + 4), str(folder)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.edge" for n in range(20))
    for path in folder.iterdir():
        ei.Artifact.open(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_pipe_in_place_of_a_file_does_not_block(name, tmp_path):
    folder = tmp_path / "add.edge"
    ei.compile(ADD, "onnxruntime").save(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError) as caught:
        ei.Artifact.open(folder)
    assert "Not a regular file" in str(caught.value)


# Golden inputs


@pytest.mark.parametrize(
    ("model", "array"),
    [
        (STRINGS, np.array(["a", "ü"], object)),
        (parse("g (bfloat16[2] x) => (bfloat16[2] y) { y = Identity(x) }"), X.astype(ml_dtypes.bfloat16)),
    ],
    ids=["string", "bfloat16"],
)
def test_golden_inputs_of_dtypes_that_files_do_not_have(model, array, tmp_path):
    artifact = ei.compile(model, "onnxruntime")
    golden = artifact.with_golden({"x": array}, {"y": array}, rtol=0, atol=0)
    with ei.load(golden.save(tmp_path / "golden.edge").path or Path()) as session:
        session.check_golden()
        assert session.manifest.golden is not None
        assert session.manifest.golden.inputs["x"].dtype == array.dtype


def test_golden_values_are_checked_when_they_are_given():
    artifact = ei.compile(ADD, "onnxruntime")
    with pytest.raises(InputError):
        artifact.with_golden({"z": X}, {"y": 2 * X}, rtol=0, atol=0)
    for outputs, rtol in (({"z": X}, 0.0), ({"y": 2 * X}, -1.0)):
        with pytest.raises(ArtifactError, match="do not fit"):
            artifact.with_golden({"x": X}, outputs, rtol=rtol, atol=0)


def test_a_backend_may_name_its_runtime_unavailable_only_when_it_is(monkeypatch):
    """An ImportError of something else is the compiler's, not the runtime's."""

    def fails(*_: object) -> None:
        raise ImportError("a plugin of its own")

    monkeypatch.setattr(type(get_backend("onnxruntime")), "compile", fails)
    with pytest.raises(ei.errors.CompileError, match="a plugin of its own"):
        ei.compile(ADD, "onnxruntime")
