"""Timings and engines that are kept between builds, over a fake TensorRT."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.kept_engines import KeptEngines
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.graph.build import compile_model
from tests.backends import fake_tensorrt
from tests.backends.small_nets import FLOAT, TWO, build, config


def test_the_timing_cache_is_kept_and_reused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    build(FLOAT, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "tensorrt-11.4.0.1-sm8.6.timing"
    build(FLOAT, cache=tmp_path)
    assert config(fake).cache.data == b"t"
    assert path.read_bytes().endswith(b"tt")
    build(FLOAT, cache=tmp_path, timing_cache=False)
    assert config(fake).cache is None


def test_without_a_folder_timings_are_kept_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    build(FLOAT)
    assert config(fake).cache.data == b""
    build(FLOAT)
    assert config(fake).cache.data == b"t"
    build(FLOAT, timing_cache=False)
    assert config(fake).cache is None
    other = fake_tensorrt.install(monkeypatch, gpus=(("Other GPU", "8.6"),))
    build(FLOAT)
    assert config(other).cache.data == b""


def test_an_engine_of_a_search_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    model = onnx.parser.parse_model(FLOAT)
    x = np.ones((1, 2), np.float32)
    for _ in range(2):
        with ei.load(compile_model(model, "tensorrt", trial=False)) as session:
            np.testing.assert_array_equal(session.infer({"x": x})["y"], [[4, 6]])
    assert len(fake.builds) == 1
    for options in ({"tf32": True}, {"timing_cache": False}, {"timing_cache": False}):
        compile_model(model, "tensorrt", trial=False, options=options)
    compile_model(onnx.parser.parse_model(TWO), "tensorrt", trial=False)
    assert len(fake.builds) == 5
    compile_model(model, "tensorrt")  # what is compiled to be kept is built
    assert len(fake.builds) == 6


def test_engines_of_a_search_are_kept_up_to_a_size(tmp_path: Path) -> None:
    kept, built = KeptEngines(most_bytes=25), []
    record = cast("BuildRecord", None)
    file = tmp_path / "engine"
    file.write_bytes(b"e" * 10)

    def get(key: str, content: bytes | Path = b"e" * 10) -> None:
        kept.get(key, lambda: built.append(key) or (content, record))  # type: ignore[func-returns-value]

    for key in "abab":
        get(key)
    assert built == ["a", "b"]
    get("c", file)
    get("b")
    get("a")  # went for "c", and comes for it
    assert built == ["a", "b", "c", "a"]
    get("big", b"e" * 99)
    get("big", b"e" * 99)
    assert built[-2:] == ["big", "big"]


def test_a_timing_cache_that_does_not_fit_is_started_anew_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    other = b"other"
    path = tmp_path / "tensorrt-11.4.0.1-sm8.6.timing"
    path.write_bytes(hashlib.sha256(other).digest() + other)
    artifact = build(FLOAT, cache=tmp_path)
    assert config(fake).cache.data == b""
    with ei.load(artifact) as session:
        assert any("does not fit this TensorRT and starts empty" in n for n in session.execution().notes)


def test_a_damaged_timing_cache_never_reaches_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = fake_tensorrt.install(monkeypatch)
    build(FLOAT, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        artifact = build(FLOAT, cache=tmp_path)
        assert config(fake).cache.data == b""
    with ei.load(artifact) as session:
        assert any("damaged and starts empty" in note for note in session.execution().notes)


def test_a_cache_that_cannot_be_kept_costs_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tensorrt.install(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    with ei.load(build(FLOAT, cache=tmp_path / "file")) as session:
        assert any("could not be kept" in note for note in session.execution().notes)
