"""The options of the TensorRT backend: each is checked when it is made, and none is silently ignored."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.errors import ArtifactError, OptionsError
from tests.backends import fake_tensorrt

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
STATIC = HEAD + "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"
DYNAMIC = HEAD + "g (float[N,3,1,M] x) => (float[N,3,1,M] y) { y = Relu(x) }"

FIELDS = [field.name for field in attrs.fields(TensorRTOptions)]
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 9),
        st.floats(),
        st.text(max_size=4),
        st.binary(max_size=3),
        st.just(object()),
        st.just(len),
        st.just(np.int64(3)),
        st.just(np.zeros(2)),
        st.sampled_from(["tensorrt", "8.6", "workspace", "int8", "device", "ampere_plus", "cublas"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 2)), inner, max_size=2),
    ),
    max_leaves=6,
)


def compiled(text: str, **options: object) -> ei.Artifact:
    return ei.compile(onnx.parser.parse_model(text), "tensorrt", options=options)


@given(field=st.sampled_from(FIELDS), value=JUNK)
def test_any_value_is_taken_or_refused_with_our_error(field: str, value: object) -> None:
    refused, made = None, TensorRTOptions()
    try:
        made = TensorRTOptions(**{field: value})
    except OptionsError as error:
        refused = error
    if refused is not None:
        assert refused.where == f"option {field}"
        assert refused.expected or refused.hint
        assert str(refused)
    # What was taken can be kept in a manifest, and means the same when it is read again.
    kept = made.to_json()
    assert TensorRTOptions(**json.loads(json.dumps(kept))).to_json() == kept


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flavour", "tensorflow"),
        ("flavour", 5),
        ("compute_capabilities", ("SM86",)),
        ("compute_capabilities", 86),
        ("dims", {"N": (3, 2, 1)}),
        ("dims", {"N": (1, 2)}),
        ("dims", {"N": (-1, 2, 3)}),
        ("dims", {"N": ("a", "b", "c")}),
        ("dims", {"": (1, 2, 3)}),
        ("dims", {5: (1, 2, 3)}),
        ("dims", (1, 2, 3)),
        ("profiles", [{"x": (1, 2, 3)}]),
        ("profiles", {"x": ((1,), (2,), (3,))}),
        ("memory_pools", {"heap": 1}),
        ("memory_pools", {"workspace": -1}),
        ("memory_pools", {"workspace": "1 GB"}),
        ("memory_pools", 3),
        ("tactic_sources", ("cutlass",)),
        ("tactic_sources", 3),
        ("optimization_level", 6),
        ("optimization_level", True),
        ("timing_cache", 1),
        ("weak_precisions", ("fp4",)),
        ("hardware_compatibility", "all"),
        ("max_aux_streams", -1),
        ("progress", "yes"),
        ("cancel", True),
        ("max_in_flight", 0),
        ("max_in_flight", "2"),
        ("max_in_flight", 2.0),
        ("max_in_flight", True),
        ("weight_streaming_budget_bytes", -1),
        ("runtime_cache", 5),
    ],
)
def test_wrong_values_are_refused_where_they_are_given(field: str, value: object) -> None:
    with pytest.raises(OptionsError) as caught:
        TensorRTOptions(**{field: value})
    assert caught.value.where == f"option {field}"


def test_dims_beside_profiles_are_refused() -> None:
    with pytest.raises(OptionsError, match="profiles") as caught:
        TensorRTOptions(dims={"N": (1, 2, 3)}, profiles=[{"x": ((1,), (2,), (3,))}])
    assert caught.value.where == "option dims"
    assert caught.value.hint


def test_a_static_dimension_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    for name in ("", "x.1", "3"):
        with pytest.raises(OptionsError):
            compiled(DYNAMIC, dims={name: (1, 2, 3)})


@pytest.mark.parametrize(
    "options",
    [
        {"gpu_fallback": False},
        {"memory_pools": {"dla_local_dram": 1 << 20}},
        {"weight_streaming_budget_bytes": 5},
        {"engine_host_code_allowed": True},
        {"runtime_cache": "kernels.bin"},
        {"refit_from": "model.onnx"},
        {"lean_runtime": "libnvinfer_lean.so"},
    ],
)
def test_what_would_be_ignored_when_compiling_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    fake_tensorrt.install(monkeypatch)
    with pytest.raises(OptionsError) as caught:
        compiled(STATIC, **options)
    assert caught.value.where == f"option {next(iter(options))}"
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"runtime_cache": "kernels.bin"},
        {"weight_streaming_budget_bytes": 5},
        {"refit_from": "model.onnx"},
        {"lean_runtime": "libnvinfer_lean.so"},
        {"tf32": True},
        {"refit": True},
        {"dims": {"N": (1, 2, 3)}},
        {"progress": True},
        {"flavour": "tensorrt-rtx"},
    ],
)
def test_what_would_be_ignored_when_loading_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    artifact = compiled(STATIC)
    with pytest.raises(OptionsError) as caught:
        ei.load(artifact, options=options)
    assert caught.value.where == f"option {next(iter(options))}"
    assert caught.value.hint
    assert not fake.cuda.calls("deserialize_cuda_engine")


def test_the_options_that_an_engine_was_built_with_may_be_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_tensorrt.install(monkeypatch)
    options = TensorRTOptions(tf32=True, dims={"N": (1, 2, 3)}, max_in_flight=3)
    artifact = ei.compile(onnx.parser.parse_model(DYNAMIC), "tensorrt", options=options)
    ei.load(artifact, options=options).close()


def test_options_of_sessions_can_be_kept_in_an_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    artifact = compiled(STATIC, weight_streaming=True, weight_streaming_budget_bytes=5, max_in_flight=3)
    assert artifact.manifest.options["weight_streaming_budget_bytes"] == 5
    with ei.load(artifact, options={"weight_streaming_budget_bytes": 7}) as session:
        assert session._runner._options.max_in_flight == 3
        assert session._runner._engine.weight_streaming_budget_v2 == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine_host_code_allowed", True),
        ("runtime_cache", "/tmp/anywhere"),
        ("refit_from", "/etc/passwd"),
        ("lean_runtime", "/tmp/evil.so"),
    ],
)
def test_a_manifest_names_no_files_and_trusts_nobody(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    fake: SimpleNamespace = fake_tensorrt.install(monkeypatch)
    artifact = compiled(STATIC)
    options = {**artifact.manifest.options, name: value}
    hostile = attrs.evolve(artifact, payload=attrs.evolve(artifact.payload, options=options))
    with pytest.raises(ArtifactError, match=name):
        ei.load(hostile)
    assert not fake.cuda.calls("deserialize_cuda_engine")


def test_options_survive_the_manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tensorrt.install(monkeypatch)
    compiled(DYNAMIC, dims={"N": (1, 2, 3)}, refit=True, cuda_graphs=False).save(tmp_path / "m.edge")
    options = dict(ei.Artifact.open(tmp_path / "m.edge").manifest.options)
    assert TensorRTOptions(**options) == TensorRTOptions(dims={"N": (1, 2, 3)}, refit=True, cuda_graphs=False)
