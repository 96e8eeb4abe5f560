"""Loading special engines, over the FAKE: stripped, refittable, without their lean runtime, streaming."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactMismatchError,
    ArtifactTrustError,
    BackendUnavailableError,
    DeviceError,
    ExternalDataError,
    OptionsError,
)
from tests.backends import fake_tensorrt

X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)
W = np.float32([1, 2, 3])


def scale_model(weights: np.ndarray = W) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"], name="scale")],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compiled(**options: object) -> ei.Artifact:
    return ei.compile(scale_model(), "tensorrt", options=options)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    made = fake_tensorrt.install(monkeypatch)
    yield made
    made.cuda.assert_nothing_left()


# Refitting.


def test_a_stripped_engine_gets_its_weights_back_when_it_is_loaded(
    fake: SimpleNamespace, tmp_path: Path
) -> None:
    compiled(strip_plan=True).save(tmp_path / "m.edge")
    with ei.load(tmp_path / "m.edge") as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)
        assert any("refitted from model.onnx" in note for note in session.execution().notes)


def test_the_weights_of_a_stripped_engine_are_shared_bytes(fake: SimpleNamespace) -> None:
    first, second = compiled(strip_plan=True), compiled(strip_plan=True, tf32=True)
    assert first.manifest.files["model.onnx"] == second.manifest.files["model.onnx"]
    assert W.tobytes() not in first.payload.read()
    assert W.tobytes() in compiled().payload.read()


def test_a_stripped_engine_without_its_weights_says_what_to_do(fake: SimpleNamespace) -> None:
    artifact = compiled(strip_plan=True, refit=True)
    files = {name: content for name, content in artifact.payload.files.items() if name != "model.onnx"}
    bare = attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, files=files))
    with pytest.raises(ArtifactError, match="refit_from"):
        ei.load(bare)
    assert not fake.cuda.calls("deserialize_cuda_engine")


@pytest.mark.parametrize("stripped", [False, True])
def test_a_refittable_engine_takes_other_weights(
    fake: SimpleNamespace, tmp_path: Path, stripped: bool
) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(scale_model(10 * W), path)
    artifact = compiled(refit=True, strip_plan=stripped)
    with ei.load(artifact, options={"refit_from": path}) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * 10 * W)
        assert any(str(path) in note for note in session.execution().notes)
    with ei.load(artifact) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)


def test_weights_that_do_not_fit_are_refused_with_tensorrts_reason(
    fake: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(scale_model(np.ones((1, 3), np.float32)), path)
    with pytest.raises(ArtifactError, match="w has another shape") as caught:
        ei.load(compiled(refit=True), options={"refit_from": path})
    assert caught.value.where == str(path)


@pytest.mark.parametrize("options", [{}, {"strip_plan": True}])
def test_other_weights_for_an_engine_that_takes_none_are_refused(
    fake: SimpleNamespace, tmp_path: Path, options: dict[str, bool]
) -> None:
    onnx.save(scale_model(), tmp_path / "m.onnx")
    with pytest.raises(OptionsError, match="cannot be replaced") as caught:
        ei.load(compiled(**options), options={"refit_from": tmp_path / "m.onnx"})
    assert caught.value.where == "option refit_from"
    assert "'refit': True" in str(caught.value)


def test_a_file_of_weights_that_is_not_there_is_refused(fake: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="no such file"):
        ei.load(compiled(refit=True), options={"refit_from": tmp_path / "missing.onnx"})


def test_tensorrt_8_cannot_refit_from_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tensorrt.install(monkeypatch, "8.6.1")
    onnx.save(scale_model(), tmp_path / "m.onnx")
    with pytest.raises(ArtifactMismatchError, match="cannot refit"):
        ei.load(compiled(refit=True), options={"refit_from": tmp_path / "m.onnx"})


# External data: a vendor's parser follows any path.


def with_external(location: str) -> bytes:
    model = scale_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model.SerializeToString()


@pytest.mark.parametrize("location", ["etc/passwd", "/etc/passwd", "../secret", "..", "beside.bin", ""])
def test_a_hostile_artifact_makes_the_parser_read_nothing_outside(
    fake: SimpleNamespace, location: str
) -> None:
    artifact = compiled(strip_plan=True)
    files = {**artifact.payload.files, "model.onnx": with_external(location)}
    hostile = attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, files=files))
    with pytest.raises(ArtifactTrustError, match="not in the artifact"):
        ei.load(hostile)


def test_weights_may_lie_beside_the_onnx_file(fake: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes((10 * W).tobytes())
    (tmp_path / "m.onnx").write_bytes(with_external("w.bin"))
    with ei.load(compiled(refit=True), options={"refit_from": tmp_path / "m.onnx"}) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * 10 * W)
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExternalDataError, match="not beside it"):
        ei.load(compiled(refit=True), options={"refit_from": tmp_path / "m.onnx"})


@pytest.mark.parametrize("content", [b"", b"location", b"\x0a\xff", b"\x3a\x02\x0a"])
def test_a_file_that_is_no_onnx_model_refits_nothing(
    fake: SimpleNamespace, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ExternalDataError, match="not an ONNX model"):
        ei.load(compiled(refit=True), options={"refit_from": tmp_path / "m.onnx"})


# Engines without their lean runtime.

LEAN = {"version_compatible": True, "exclude_lean_runtime": True}


def test_the_version_that_built_it_runs_an_engine_without_its_lean_runtime(fake: SimpleNamespace) -> None:
    with ei.load(compiled(**LEAN)) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)


def test_the_lean_runtime_alone_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    artifact = compiled(**LEAN)
    plain = compiled()
    lean = fake_tensorrt.install(monkeypatch, module="tensorrt_lean")
    with ei.load(artifact) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)
        assert any("does not tell which layers" in note for note in session.execution().notes)
    lean.cuda.assert_nothing_left()
    with pytest.raises(ArtifactMismatchError, match="another tensorrt"):
        ei.load(plain)
    with pytest.raises(BackendUnavailableError, match="not installed"):
        compiled()


def test_a_lean_runtime_beside_another_version_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "11.0.0.1")
    artifact = compiled(**LEAN)
    fake_tensorrt.install(monkeypatch, "11.4.0.1", lean="11.0.0.1")
    with ei.load(artifact) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)


def test_another_version_runs_it_through_the_library_of_the_lean_runtime(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_tensorrt.install(monkeypatch, "11.0.0.1")
    artifact = compiled(**LEAN)
    fake = fake_tensorrt.install(monkeypatch, "11.4.0.1")
    with pytest.raises(ArtifactMismatchError, match="lean runtime") as caught:
        ei.load(artifact)
    assert "lean_runtime" in str(caught.value)
    library = tmp_path / "libnvinfer_lean.so.11"
    library.write_text("lean 11.0.0.1")
    with ei.load(artifact, options={"lean_runtime": library}) as session:
        np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)
    library.write_text("something else")
    with pytest.raises(OptionsError, match="cannot load that library"):
        ei.load(artifact, options={"lean_runtime": library})
    with pytest.raises(OptionsError, match="no such library"):
        ei.load(artifact, options={"lean_runtime": tmp_path / "missing.so"})
    fake.cuda.assert_nothing_left()


def test_a_stripped_engine_on_a_lean_runtime_says_that_it_cannot_be_refitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_tensorrt.install(monkeypatch)
    artifact = compiled(strip_plan=True, **LEAN)
    fake_tensorrt.install(monkeypatch, module="tensorrt_lean")
    with pytest.raises(ArtifactMismatchError, match="cannot refit"):
        ei.load(artifact)


# What is set after loading, and what may go wrong before.


@pytest.mark.parametrize(
    ("version", "asked", "attribute", "set_to"),
    [
        ("10.0.1", 50, "weight_streaming_budget", 50),
        ("10.0.1", 5, "weight_streaming_budget", 20),  # the least that it takes
        ("10.0.1", 200, "weight_streaming_budget", -1),  # none is streamed
        ("10.3.0", 50, "weight_streaming_budget_v2", 50),
        ("11.4.0.1", 0, "weight_streaming_budget_v2", 0),
        ("11.4.0.1", 200, "weight_streaming_budget_v2", 100),
    ],
)
def test_the_streaming_budget_is_set_in_each_version(
    monkeypatch: pytest.MonkeyPatch, version: str, asked: int, attribute: str, set_to: int
) -> None:
    fake_tensorrt.install(monkeypatch, version)
    with ei.load(
        compiled(weight_streaming=True), options={"weight_streaming_budget_bytes": asked}
    ) as session:
        assert getattr(session._runner._engine, attribute) == set_to


def test_a_runtime_that_does_not_start_is_an_error_and_not_a_crash(fake: SimpleNamespace) -> None:
    artifact = compiled()
    fake.trt.fail_runtime = True
    with pytest.raises(DeviceError, match="cannot start") as caught:
        ei.load(artifact)
    assert "error: 35" in str(caught.value)
    assert not fake.cuda.calls("deserialize_cuda_engine")


@pytest.mark.parametrize(
    "record",
    [b"", b"[]", b"{}", b'{"inputs": 5}', b'{"flavour": "tensorrt"}', b"\xff", b'{"inputs": [[1, 2, 3]]}'],
)
def test_a_record_that_is_none_is_a_format_error(fake: SimpleNamespace, record: bytes) -> None:
    artifact = compiled()
    files = {**artifact.payload.files, "build.json": record}
    with pytest.raises(ArtifactFormatError, match="record"):
        ei.load(attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, files=files)))
    del files["build.json"]
    with pytest.raises(ArtifactFormatError, match="record"):
        ei.load(attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, files=files)))


@pytest.mark.parametrize("dtype", ["float16", "int64", "object", "no such dtype"])
def test_an_engine_of_other_dtypes_than_its_record_is_refused(fake: SimpleNamespace, dtype: str) -> None:
    artifact = compiled()
    record = BuildRecord.decode(artifact.payload.read("build.json"))
    changed = attrs.evolve(record, inputs=(("x", dtype),)).encode()
    files = {**artifact.payload.files, "build.json": changed}
    with pytest.raises(ArtifactFormatError, match="do not agree on a dtype"):
        ei.load(attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, files=files)))


def test_a_record_of_a_later_version_is_read() -> None:
    record = BuildRecord(flavour="tensorrt", version="11.4", built_on="x", inputs=(), outputs=())
    assert BuildRecord.decode(record.encode().replace(b"{", b'{"later": 1, ', 1)) == record


def test_the_runtime_cache_of_rtx_is_verified_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_tensorrt.install(monkeypatch, "1.7.1", module="tensorrt_rtx")
    artifact, path = compiled(), tmp_path / "kernels.bin"
    options = {"runtime_cache": path}
    for count in (1, 2):
        with ei.load(artifact, options=options) as session:
            np.testing.assert_array_equal(session.infer({"x": X})["y"], X * W)
        assert path.read_bytes() == hashlib.sha256(b"k" * count).digest() + b"k" * count
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with ei.load(artifact, options=options) as session:
        assert any("damaged" in note for note in session.execution().notes)
    other = b"other"
    path.write_bytes(hashlib.sha256(other).digest() + other)
    with ei.load(artifact, options=options) as session:
        assert any("does not fit" in note for note in session.execution().notes)
    fake.cuda.assert_nothing_left()
