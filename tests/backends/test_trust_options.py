"""Options of an artifact: none may name a file, and each has a type and limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.errors import (
    ArtifactError,
    ArtifactTrustError,
    OptionsError,
)
from tests.backends.hand_made import X, add, sign, weight


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


# Options that name files


def with_options(backend: str, folder: Path, **options: object) -> Path:
    ei.compile(add([weight()]), backend).save(folder)
    return sign(folder, options=options)


def hostile(backend: str) -> Iterator[dict[str, object]]:
    if backend == "openvino":
        yield {"cache_dir": "out"}
        for name in (
            "CACHE_DIR", "WEIGHTS_PATH", "CONFIG_FILE", "NPUW_CACHE_DIR", "NPUW_DUMP_FULL", "CACHE_PATH",
            "DEVICE_PROPERTIES", "INFERENCE_NUM_THREADS", "SOMETHING_NEW", "cache_dir",
        ):  # fmt: skip
            yield {"properties": {"PERF_COUNT": True, name: "out"}}
        yield {"properties": {"DEVICE_PROPERTIES": {"CPU": {"CACHE_DIR": "out"}}}}
    else:
        yield {"plugin_libraries": {"mine": "out.so"}}
        for name in (
            "session.collect_node_memory_stats_to_file", "session.optimized_model_filepath",
            "session.enable_profiling",
            "session.model_external_initializers_file_folder_path", "session.node_partition_config_file",
            "session.moe_expert_counter_state_file", "session.load_model_format", "ep.context_enable",
            "ep.context_file_path", "session.intra_op_num_threads", "session.something_new",
        ):  # fmt: skip
            yield {"session_config": {"session.set_denormal_as_zero": "1", name: "out"}}
        for name in (
            "backend_path",
            "trt_engine_cache_path",
            "trt_dump_ep_context_model",
            "cache_dir",
            "new",
        ):
            yield {"provider_options": {name: "out"}}
            yield {"providers": ["CPUExecutionProvider", ["QNNExecutionProvider", {name: "out"}]]}


@pytest.mark.parametrize(
    ("backend", "options"),
    [(backend, options) for backend in ("onnxruntime", "openvino") for options in hostile(backend)],
    ids=str,
)
def test_an_artifact_sets_no_option_that_may_name_a_file(backend, options, tmp_path, monkeypatch):
    pytest.importorskip(backend)
    monkeypatch.chdir(tmp_path)
    folder = with_options(backend, tmp_path / "a.edge", **options)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactTrustError, match="no artifact may set") as caught:
        ei.load(folder)
    assert caught.value.facts["options"]
    assert "give it to load" in str(caught.value.hint)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "options",
    [{"no_such": 1}, {"threads": 100_000}, {"threads": "many"}, {"properties": 3}, {"session_config": [1]},
     {"providers": 3}, {"provider_options": "x"}],
    ids=str,
)  # fmt: skip
def test_options_of_an_artifact_that_are_none(backend, options, tmp_path):
    with pytest.raises(ArtifactError, match=r"refused|no artifact may set"):
        ei.load(with_options(backend, tmp_path / "a.edge", **options))


@pytest.mark.parametrize(
    ("backend", "options", "kept", "left_out"),
    [
        (
            "onnxruntime",
            {
                "session_config": {
                    "session.set_denormal_as_zero": "1",
                    "session.intra_op.spin_backoff_max": "1",
                }
            },
            {"session_config": {"session.set_denormal_as_zero": "1"}},
            "session_config.session.intra_op.spin_backoff_max",
        ),
        (
            "onnxruntime",
            {"providers": [("CPUExecutionProvider", {"arena_extend_strategy": "kNextPowerOfTwo"})]},
            {"providers": [["CPUExecutionProvider", {"arena_extend_strategy": "kNextPowerOfTwo"}]]},
            None,
        ),
        (
            "openvino",
            {"properties": {"ENABLE_HYPER_THREADING": False, "INFERENCE_NUM_THREADS": 1}},
            {"properties": {"ENABLE_HYPER_THREADING": False}},
            "properties.INFERENCE_NUM_THREADS",
        ),
    ],
)
def test_what_an_artifact_does_not_keep_is_noted(backend, options, kept, left_out, tmp_path):
    pytest.importorskip(backend)
    artifact = ei.compile(add([weight()]), backend, options=options)
    opened = Artifact.open(artifact.save(tmp_path / "a.edge").path or "")
    assert {name: opened.manifest.options[name] for name in kept} == kept
    notes = opened.manifest.notes
    assert [left_out in note for note in notes] == ([True] if left_out else [])
    assert "give it to load" in str(opened.table()) or not left_out
    with ei.load(opened, options=options) as session:
        session.infer(X)


# Values of options


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"threads": -1}, "threads"),
        ({"threads": True}, "threads"),
        ({"threads": 1.0}, "threads"),
        ({"threads": 257}, "threads"),
        ({"threads": 100_000}, "threads"),
        ({"inter_threads": 100_000}, "inter_threads"),
        ({"graph_optimization_level": "most"}, "graph_optimization_level"),
        ({"graph_optimization_level": ["all"]}, "graph_optimization_level"),
        ({"execution_mode": None}, "execution_mode"),
        ({"memory_arena": 1}, "memory_arena"),
        ({"memory_pattern": None}, "memory_pattern"),
        ({"allow_spinning": "no"}, "allow_spinning"),
        ({"int8_activations": 1}, "int8_activations"),
        ({"providers": 3}, "providers"),
        ({"providers": [3]}, "providers"),
        ({"providers": [("CPUExecutionProvider", 3)]}, "providers"),
        ({"providers": [("CPUExecutionProvider", {"a": None})]}, "providers"),
        ({"provider_options": [1]}, "provider_options"),
        ({"provider_options": {1: "a"}}, "provider_options"),
        ({"session_config": {"a": [1]}}, "session_config"),
        ({"plugin_libraries": {"a": None}}, "plugin_libraries"),
    ],
    ids=str,
)
def test_onnxruntime_options_are_refused_when_they_are_made(options, name):
    from edgeinfer.backends.onnxruntime_.options import OnnxRuntimeOptions

    refused(OnnxRuntimeOptions, options, name)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"performance_hint": "FAST"}, "performance_hint"),
        ({"performance_hint": 3}, "performance_hint"),
        ({"num_streams": 0}, "num_streams"),
        ({"num_streams": 100_000}, "num_streams"),
        ({"threads": -1}, "threads"),
        ({"threads": "two"}, "threads"),
        ({"threads": 100_000}, "threads"),
        ({"inference_precision": "int4"}, "inference_precision"),
        ({"execution_mode": "FAST"}, "execution_mode"),
        ({"pinning": "yes"}, "pinning"),
        ({"pinning": 1}, "pinning"),
        ({"cache_dir": 3}, "cache_dir"),
        ({"cache_dir": "a\0b"}, "cache_dir"),
        ({"export": 1}, "export"),
        ({"properties": 3}, "properties"),
        ({"properties": {1: 2}}, "properties"),
        ({"properties": {"CACHE_DIR": "x"}}, "properties"),
        ({"properties": {"DEVICE_PROPERTIES": {"CPU": {"CACHE_DIR": "x"}}}}, "properties"),
    ],
    ids=str,
)
def test_openvino_options_are_refused_when_they_are_made(options, name):
    from edgeinfer.backends.openvino_.options import OpenVINOOptions

    refused(OpenVINOOptions, options, name)


def refused(cls: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionsError) as caught:
        cls(**options)
    error = caught.value
    assert name in str(error.where)
    assert error.expected
    assert error.found


def test_the_reason_for_the_limit_of_threads_is_told():
    with pytest.raises(OptionsError) as caught:
        ei.compile(add([weight()]), "onnxruntime", options={"threads": 100_000})
    assert "from 0 to 256" in str(caught.value.expected)
    assert "a minute or more" in str(caught.value.hint)
