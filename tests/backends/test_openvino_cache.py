"""OpenVINO's cache folder: what it holds is verified before it is used."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import edgeinfer as ei
from edgeinfer.backends.openvino_.cache import INDEX_NAME, verified_cache
from edgeinfer.errors import OptionsError

pytest.importorskip("openvino")

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
WEIGHTS = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
X = np.ones((1, 64), np.float32)


@pytest.fixture
def artifact() -> ei.Artifact:
    proto = onnx.parser.parse_model(HEADER + "g (float[1, 64] x) => (float[1, 64] y) { y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    return ei.compile(proto, "openvino")


def run(artifact: ei.Artifact, cache: Path) -> tuple[np.ndarray, tuple[str, ...], bool]:
    """Return the output, what was noted, and whether OpenVINO took the model from its cache."""
    with ei.load(artifact, options={"cache_dir": str(cache)}) as session:
        cached = session._runner._engine.current().model.get_property("LOADED_FROM_CACHE")
        return session.infer(X)["y"], session.execution().notes, cached


def blob(cache: Path) -> Path:
    (found,) = cache.glob("*.blob")
    return found


def test_a_cache_is_used(artifact, tmp_path):
    first, notes, cached = run(artifact, tmp_path / "cache")  # the folder is made
    assert (notes, cached) == ((), False)
    again, notes, cached = run(artifact, tmp_path / "cache")
    assert (notes, cached) == ((), True)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(first, X @ WEIGHTS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_found_told_and_removed(seed, artifact, tmp_path, caplog):
    right, *_ = run(artifact, tmp_path)
    file = blob(tmp_path)
    data = bytearray(file.read_bytes())
    start = data.find(WEIGHTS.tobytes()[:16])
    assert start > 0
    data[start + int(np.random.default_rng(seed).integers(WEIGHTS.nbytes))] ^= 0x40
    file.chmod(0o644)
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found, notes, cached = run(artifact, tmp_path)
    np.testing.assert_array_equal(found, right)
    assert not cached
    assert f"the cached model {file} was changed since it was cached, and was removed" in caplog.messages
    assert notes == (caplog.messages[-1],)
    assert run(artifact, tmp_path)[1:] == ((), True)  # it was cached again


def test_a_cached_model_that_is_not_in_the_index_is_removed(artifact, tmp_path, caplog):
    run(artifact, tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    _, notes, cached = run(artifact, tmp_path)
    assert not cached
    assert "not in the index" in notes[0]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": {}, "sha256": "0"}', '{"files": 3}'])
def test_a_damaged_index_is_none(text, artifact, tmp_path, caplog):
    run(artifact, tmp_path)
    (tmp_path / INDEX_NAME).write_text(text)
    _, notes, cached = run(artifact, tmp_path)
    assert not cached
    assert len(notes) == 1
    assert "is damaged" in caplog.text


def test_an_index_that_was_made_to_fit_the_damage_is_none_without_its_hash(artifact, tmp_path):
    run(artifact, tmp_path)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    index["files"] = dict.fromkeys(index["files"], "0" * 64)
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    assert not run(artifact, tmp_path)[2]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_what_is_no_plain_file_is_removed(kind, artifact, tmp_path):
    cache = tmp_path / "cache"
    run(artifact, cache)
    file, outside = blob(cache), tmp_path / "outside"
    file.rename(outside)
    if kind == "symlink":
        file.symlink_to(outside)
    elif kind == "hard link":
        file.hardlink_to(outside)
    else:
        os.mkfifo(file)
    _, notes, cached = run(artifact, cache)
    assert not cached
    assert len(notes) == 1
    assert outside.exists()


def test_other_files_are_left_alone(artifact, tmp_path):
    others = {"weights.bin": b"1", "notes.txt": b"2", "model.blob": b"3", "12.blob.bak": b"4"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "7.blob").mkdir()
    run(artifact, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
    assert (tmp_path / "7.blob").is_dir()


def test_compile_uses_the_same_cache(artifact, tmp_path):
    model = artifact.payload.read()
    ei.compile(model, "openvino", cache_dir=tmp_path)
    assert run(artifact, tmp_path)[1:] == ((), True)


def test_a_model_that_is_refused_leaves_a_usable_folder(artifact, tmp_path):
    def interrupted() -> None:
        with verified_cache(tmp_path):
            (tmp_path / "1.blob").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with verified_cache(tmp_path) as removed:
        assert len(removed) == 1
    assert not (tmp_path / "1.blob").exists()


@pytest.mark.parametrize("kind", ["a file", "a file above"])
def test_a_folder_that_cannot_be_used(kind, artifact, tmp_path):
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "below" if kind == "a file above" else tmp_path / "file"
    with pytest.raises(OptionsError, match="cache folder cannot be used") as caught:
        run(artifact, cache)
    assert str(cache) in str(caught.value.where)


def test_damage_that_cannot_be_removed_is_an_error(artifact, tmp_path, monkeypatch):
    run(artifact, tmp_path)
    blob(tmp_path).chmod(0o644)
    blob(tmp_path).write_bytes(b"damaged")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OptionsError, match="Operation not permitted"):
        run(artifact, tmp_path)


def _hold(folder: str, started: object, released: object) -> None:
    with verified_cache(Path(folder)):
        started.set()  # type: ignore[attr-defined]
        released.wait(60)  # type: ignore[attr-defined]


def test_processes_take_turns(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, released = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), started, released))
    other.start()
    assert started.wait(60)
    import fcntl

    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    released.set()
    other.join(60)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
