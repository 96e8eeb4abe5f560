"""The verbs on both runtimes: real models, artifacts that move between machines, options, errors."""

from __future__ import annotations

import attrs
import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.manifest import encode_manifest
from edgeinfer.backends.protocol import Capabilities
from edgeinfer.backends.registry import get_backend
from edgeinfer.errors import (
    ArtifactIntegrityError,
    ArtifactMismatchError,
    BackendUnavailableError,
    OptionsError,
    UnknownBackendError,
)
from edgeinfer.runtime.session import SessionOptions

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
ADD = onnx.parser.parse_model(HEADER + "add (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }")
X = np.arange(6, dtype=np.float32).reshape(2, 3)
BACKENDS = ("onnxruntime", "openvino")
MODELS = (
    "mobilenet_v2_1.0_224",
    "squeezenet1_1",
    "cifar10_resnet20",
    "cifar10_resnet8_mlperf",
    "vww_mobilenetv1_025_96",
    "kws_dscnn",
    "mnist_cntk",
    "nanodet_m_320",
    "silero_vad_16k",
    "espcn_x3",
    "minilm_l6_fp16w",
)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_real_models_agree_on_both_runtimes(name, models, baselines, tmp_path):
    """Compile, save, load and run; outputs within 1e-3 of the largest value of each, in fact about 1e-5."""
    pytest.importorskip("openvino")
    example = baselines.TASKS[name][1]
    rng = np.random.default_rng(0)
    feed = {
        key: value if value.dtype.kind == "i" else rng.standard_normal(value.shape).astype(value.dtype)
        for key, value in example.items()
    }
    outputs = {}
    for backend in BACKENDS:
        ei.compile(models(name), backend).save(tmp_path / backend)
        with ei.load(tmp_path / backend) as session:
            outputs[backend] = ei.infer(session, feed)
    for output, expected in outputs["onnxruntime"].items():
        found = outputs["openvino"][output]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.data
@pytest.mark.parametrize("name", ["kws_dscnn", "mnist_cntk"])
def test_the_metric_of_a_real_model_is_its_baseline(name, models, baselines, backend):
    task, _ = baselines.TASKS[name]
    with ei.load(ei.compile(models(name), backend)) as session:
        names = [spec.name for spec in session.signature.outputs]

        def run(feed, outputs=None):
            found = session.infer(feed)
            return [found[output] for output in outputs or names]

        top1 = task(run, "all")["top1"]
    assert top1 == pytest.approx({"kws_dscnn": 0.9150, "mnist_cntk": 0.9891}[name], abs=1e-3)


def test_all_sources_compile_to_the_same(backend, tmp_path):
    onnx.save(ADD, tmp_path / "add.onnx")
    sources = [
        tmp_path / "add.onnx",
        str(tmp_path / "add.onnx"),
        ADD,
        ADD.SerializeToString(),
        ei.Model.load(ADD),
    ]
    digests = {ei.compile(source, backend).manifest.model_digest for source in sources}
    assert len(digests) == 1


def test_the_backend_and_device_may_be_named_together(backend):
    artifact = ei.compile(ADD, f"{backend}:CPU")
    assert (artifact.manifest.backend, artifact.manifest.device) == (backend, "CPU")


def test_without_a_backend_one_is_chosen_that_runs_here():
    with ei.load(ei.compile(ADD)) as session:
        np.testing.assert_array_equal(session.infer(X)["y"], X + X)


def test_session_options_are_arguments_and_backend_options_a_mapping(backend):
    artifact = ei.compile(ADD, backend, options={"threads": 2})
    with ei.load(artifact, options={"threads": 1}, deadline_ms=1e-6) as session:
        for _ in range(5):
            session.infer(X)
        assert session.deadline_misses == 5
    with ei.load(artifact, deadline_ms=60_000) as session:
        session.infer(X)
        assert session.deadline_misses == 0
    for wrong in ({"pin_cores": 0}, {"no_such_option": 1}, {"threads": -1}, 3):
        with pytest.raises(OptionsError):
            ei.load(artifact, options=wrong)
    for deadline_ms in (0, -1, float("nan"), "fast"):
        with pytest.raises(OptionsError, match="deadline_ms"):
            ei.load(artifact, deadline_ms=deadline_ms)


def test_compile_takes_a_target_by_either_name():
    by_target = ei.compile(ADD, target="onnxruntime")
    by_backend = ei.compile(ADD, backend="onnxruntime")
    assert by_target.manifest.backend == by_backend.manifest.backend == "onnxruntime"
    with pytest.raises(OptionsError, match="another name"):
        ei.compile(ADD, target="onnxruntime", backend="openvino")


def test_options_values_have_the_names_of_the_mapping():
    from edgeinfer.backends.onnxruntime_.backend import OnnxRuntimeOptions

    artifact = ei.compile(ADD, "onnxruntime", options=OnnxRuntimeOptions(threads=1))
    assert artifact.manifest.options == {"threads": 1}
    assert SessionOptions(pin_cores=1).pin_cores == (1,)


def test_a_portable_artifact_of_another_machine_loads_here(backend, tmp_path, monkeypatch):
    artifact = ei.compile(ADD, backend)
    artifact.save(tmp_path / "add.edge")
    elsewhere = type(get_backend(backend))
    real = elsewhere.capabilities

    def other_machine(self) -> Capabilities:
        return attrs.evolve(real(self), version="1.0", facts={"system": "Other", "machine": "riscv64"})

    monkeypatch.setattr(elsewhere, "capabilities", other_machine)
    with ei.load(tmp_path / "add.edge") as session:
        np.testing.assert_array_equal(session.infer(X)["y"], X + X)


def test_what_an_artifact_requires_is_compared_with_patterns(backend, tmp_path):
    saved = ei.compile(ADD, backend).save(tmp_path / "add.edge")

    def require(**facts: tuple[str, ...]) -> None:
        edited = attrs.evolve(saved.manifest, requires=facts)
        (tmp_path / "add.edge" / "manifest.json").write_bytes(encode_manifest(edited))

    require(machine=("nothing", "*"))
    with ei.load(tmp_path / "add.edge") as session:
        assert session.infer(X)["y"].shape == X.shape
    require(machine=("sparc*", "vax"))
    with pytest.raises(ArtifactMismatchError, match="machine") as caught:
        ei.load(tmp_path / "add.edge")
    assert caught.value.expected == "machine sparc* or vax"
    assert "Compile the model" in str(caught.value.hint)
    require(no_such_fact=("1",))
    with pytest.raises(ArtifactMismatchError, match="unknown"):
        ei.load(tmp_path / "add.edge")


def test_a_flipped_bit_is_found_before_the_runtime_sees_it(backend, tmp_path, monkeypatch):
    ei.compile(ADD, backend).save(tmp_path / "add.edge")
    path = tmp_path / "add.edge" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))

    def never(*_: object) -> None:
        raise AssertionError("the runtime was given damaged bytes")

    monkeypatch.setattr(type(get_backend(backend)), "load", never)
    with pytest.raises(ArtifactIntegrityError):
        ei.load(tmp_path / "add.edge")


def test_unknown_and_missing_backends_are_refused(monkeypatch):
    with pytest.raises(UnknownBackendError, match="no-such"):
        ei.compile(ADD, "no-such")
    artifact = ei.compile(ADD, "onnxruntime")
    monkeypatch.setattr(
        type(get_backend("onnxruntime")),
        "capabilities",
        lambda _: Capabilities(available=False, reason="it was uninstalled"),
    )
    with pytest.raises(BackendUnavailableError, match="uninstalled"):
        ei.load(artifact)
