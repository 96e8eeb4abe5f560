"""Feeds in files and folders."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import FeedsError
from edgeinfer.feeds import files
from edgeinfer.feeds.feeds import Feeds


def signature(**inputs: tuple[object, ...]) -> Signature:
    return Signature(
        inputs=[TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, *shape) in inputs.items()],
        outputs=[],
    )


OPEN = signature(x=(np.float32, "N", 3))


def rows(*counts: int, start: int = 0) -> list[np.ndarray]:
    """Arrays of so many rows each, every row with a number of its own."""
    numbers = np.arange(start, start + 3 * sum(counts), dtype=np.float32).reshape(-1, 3)
    return np.split(numbers, np.cumsum(counts)[:-1])


def test_folders_and_files_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(FeedsError, match="no such folder or file"):
        Feeds.of(tmp_path / "none", OPEN)
    with pytest.raises(FeedsError, match="no such file"):
        Feeds.of(tmp_path / "none.npy", OPEN)
    with pytest.raises(FeedsError, match=r"no \.npy"):
        Feeds.of(tmp_path, OPEN)
    (tmp_path / "a.txt").write_text("no array")
    with pytest.raises(FeedsError, match="neither a folder nor a file"):
        Feeds.of(tmp_path / "a.txt", OPEN)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_files_are_named(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(FeedsError, match="not a file of numpy arrays") as caught:
        list(Feeds.of(path, OPEN))
    assert str(path) in str(caught.value.where)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=np.array([{}], object))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(FeedsError, match="not a file of numpy arrays"):
            list(Feeds.of(tmp_path / name, OPEN))


def test_members_of_an_archive_are_taken_by_the_names_of_inputs(tmp_path):
    np.savez(tmp_path / "one.npz", anything=rows(1)[0])
    np.savez(tmp_path / "labelled.npz", x=rows(1)[0], labels=np.zeros(1))
    np.savez(tmp_path / "wrong.npz", y=rows(1)[0], labels=np.zeros(1))
    assert [
        list(feed) for name in ("one", "labelled") for feed in Feeds.of(tmp_path / f"{name}.npz", OPEN)
    ] == [
        ["x"],
        ["x"],
    ]
    with pytest.raises(FeedsError, match="lacks an input") as caught:
        list(Feeds.of(tmp_path / "wrong.npz", OPEN))
    assert caught.value.found == "y, labels"


def test_text_is_read_as_it_is(tmp_path):
    text = signature(s=(object, "N"))
    np.savez(tmp_path / "a.npz", s=np.array(["a", "bc"]))
    for source in ({"s": np.array(["a", "bc"], object)}, {"s": ["a", "bc"]}, tmp_path / "a.npz"):
        assert Feeds.of(source, text).first()["s"].tolist() == ["a", "bc"]


def test_a_large_file_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAPPED_BYTES", 1 << 20)
    array = np.arange(2**21, dtype=np.float32).reshape(-1, 256)  # 8 MiB
    np.save(tmp_path / "a.npy", array)
    wide = signature(x=(np.float32, 32, 256))
    feeds = Feeds.of(tmp_path / "a.npy", wide)
    tracemalloc.start()
    total = sum(float(feed["x"].sum(dtype=np.float64)) for feed in feeds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == float(array.sum(dtype=np.float64))
    assert peak < 2 << 20
