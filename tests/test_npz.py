"""Arrays of any name come back from an .npz file; objects are refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeinfer.npz import write_npz

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
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(tmp_path / "x.npz", {"x": np.array([{}], object)})
