"""Arrays of every dtype in `.npz` files, of which nothing is ever unpickled.

numpy's format has no strings as objects and none of the dtypes of `ml_dtypes`: strings are written as numpy's
own, the others as bytes (`V2`), which the signature gives their dtype back.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from edgeinfer.artifact.signature import TensorSpec

__all__ = ["as_spec", "write_npz"]


def write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name. Unlike `numpy.savez` it takes every name, `file` among them.

    Raises:
        ValueError: A string ends in a null character, which numpy's format does not keep.
    """
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _plain(name, array), allow_pickle=False)


def as_spec(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Return what was read, with the signature's dtype where the file has only the bytes of its values."""
    bytes_only = array.dtype.kind == "V" and array.dtype.isbuiltin == 0 and array.dtype.names is None
    if bytes_only and spec.dtype.isbuiltin != 1 and array.dtype.itemsize == spec.dtype.itemsize:
        return array.view(spec.dtype)
    return array


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        strings = array.astype(str)
        if strings.astype(object).tolist() != array.tolist():
            raise ValueError(f"a string of {name!r} ends in a null character, which an .npz file loses")
        return strings
    return array if array.dtype.isbuiltin == 1 else array.view(f"V{array.dtype.itemsize}")
