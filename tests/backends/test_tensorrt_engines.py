"""Which engines are loaded and which are refused, over a fake TensorRT."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.errors import (
    ArtifactIntegrityError,
    ArtifactMismatchError,
    DeviceError,
    OptionsError,
)
from tests.backends import fake_tensorrt, fake_tensorrt_run
from tests.backends.small_nets import STATIC, X, Y, model


@pytest.mark.parametrize(
    ("version", "gpus", "fact"),
    [
        ("11.4.0.1", (("Fake Orin", "8.7"),), "compute_capability"),
        ("11.5.0.1", (("Fake GPU", "8.6"),), "tensorrt"),
        ("10.3.0.1", (("Fake GPU", "8.6"),), "tensorrt"),
    ],
)
def test_an_engine_of_another_machine_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, version: str, gpus: tuple[tuple[str, str], ...], fact: str
) -> None:
    fake_tensorrt.install(monkeypatch)
    artifact = ei.compile(model(STATIC), "tensorrt")
    here = fake_tensorrt.install(monkeypatch, version, gpus=gpus)
    with pytest.raises(ArtifactMismatchError) as caught:
        ei.load(artifact)
    assert caught.value.facts["mismatches"][0][0] == fact
    assert not here.cuda.calls("deserialize_cuda_engine", "cudaMalloc")


def test_an_engine_of_the_other_flavour_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "1.7.1", module="tensorrt_rtx")
    artifact = ei.compile(model(STATIC), "tensorrt")
    fake_tensorrt.install(monkeypatch)
    with pytest.raises(ArtifactMismatchError, match="another tensorrt-rtx") as caught:
        ei.load(artifact)
    assert "not installed" in str(caught.value)


def test_an_engine_that_was_tampered_with_never_reaches_tensorrt(fake: SimpleNamespace, tmp_path) -> None:
    ei.compile(model(STATIC), "tensorrt").save(tmp_path / "m.edge")
    engine = tmp_path / "m.edge" / "model.engine"
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactIntegrityError):
        ei.load(tmp_path / "m.edge")
    assert not fake.cuda.calls("deserialize_cuda_engine")


def test_host_code_needs_an_explicit_decision(fake: SimpleNamespace) -> None:
    artifact = ei.compile(model(STATIC), "tensorrt", options={"version_compatible": True})
    with pytest.raises(OptionsError, match="host code"):
        ei.load(artifact)
    assert not fake.cuda.calls("deserialize_cuda_engine")
    with ei.load(artifact, options={"engine_host_code_allowed": True}) as loaded:
        assert loaded._runner._runtimes[-1].engine_host_code_allowed is True
        np.testing.assert_array_equal(loaded.infer({"x": X})["y"], Y)


def test_a_version_compatible_engine_runs_on_later_versions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "10.8.0")
    artifact = ei.compile(model(STATIC), "tensorrt", options={"version_compatible": True})
    allowed = {"engine_host_code_allowed": True}
    fake_tensorrt.install(monkeypatch, "10.13.0")
    ei.load(artifact, options=allowed).close()
    fake_tensorrt.install(monkeypatch, "10.3.0")
    with pytest.raises(ArtifactMismatchError, match="newer"):
        ei.load(artifact, options=allowed)
    fake_tensorrt.install(monkeypatch, "11.0.0")
    with pytest.raises(ArtifactMismatchError, match="another tensorrt"):
        ei.load(artifact, options=allowed)


def test_tensorrt_rtx_is_asked_whether_the_engine_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch, "1.7.1", module="tensorrt_rtx")
    artifact = ei.compile(model(STATIC), "tensorrt")
    monkeypatch.setattr(fake_tensorrt_run, "MAGIC", b"NEWS")
    with pytest.raises(ArtifactMismatchError, match="cannot run here") as caught:
        ei.load(artifact)
    assert "unsupported cc" in str(caught.value)
    assert not fake.cuda.calls("deserialize_cuda_engine")


def test_rtx_says_that_it_does_not_run_on_a_data_centre_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (("Fake H100", "9.0"),)
    fake = fake_tensorrt.install(monkeypatch, "1.7.1", module="tensorrt_rtx", gpus=gpus)
    with pytest.raises(DeviceError, match="does not run on this GPU") as caught:
        ei.compile(model(STATIC), "tensorrt")
    assert "Fake H100, compute capability 9.0" in str(caught.value)
    assert not fake.cuda.calls("build_serialized_network")
    found = ei.backends()["tensorrt"].load().capabilities()
    assert not found.available
    assert "does not run on Fake H100 (compute capability 9.0)" in found.reason
