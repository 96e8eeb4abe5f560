"""Arrays of any name come back from an .npz file; objects are refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from edgeinfer.npz import with_dtype, write_npz

NAMES = ("file", "allow_pickle", "args", "a/b:0", "ü")


@pytest.mark.parametrize("compress", [False, True])
def test_any_name_comes_back(tmp_path, compress):
    arrays = {name: np.full((2, index), index, np.float32) for index, name in enumerate(NAMES)}
    write_npz(tmp_path / "x.npz", arrays, compress=compress)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert set(found) == set(NAMES)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_objects_are_refused(tmp_path):
    for wrong in ({}, 3, "ends in null\0"):
        with pytest.raises(ValueError, match="does not keep"):
            write_npz(tmp_path / "x.npz", {"x": np.array([wrong], object)})


def test_strings_and_foreign_dtypes_come_back(tmp_path):
    arrays = {
        "text": np.array(["yes", "nö"], object),
        "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        "tiny": np.array([1, -2], ml_dtypes.float8_e5m2),
    }
    write_npz(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        assert found["text"].tolist() == ["yes", "nö"]
        for name in ("half", "tiny"):
            read = with_dtype(found[name], arrays[name].dtype)
            assert read.dtype == arrays[name].dtype
            np.testing.assert_array_equal(read, arrays[name])
