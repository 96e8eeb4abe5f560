"""Arrays of every dtype in `.npz` files, of which nothing is ever unpickled.

numpy's format has no strings as objects and none of the dtypes of `ml_dtypes`: strings are written as numpy's
own, the others as bytes (`V2`), to which `with_dtype` gives their dtype back.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["member", "with_dtype", "write_npz"]


def write_npz(
    file: str | Path | IO[bytes], arrays: Mapping[str, np.ndarray], *, compress: bool = False
) -> None:
    """Write arrays as `numpy.savez` does.

    `numpy.savez` takes the names as keyword arguments, so that a tensor named `file` breaks it, and before
    numpy 2.1 it stores the argument `allow_pickle` as one more array.

    Args:
        file: The path, or an open binary file.
        arrays: The arrays by name.
        compress: Deflate them.

    Raises:
        ValueError: An array holds objects that are no strings, or a string that ends in a null character,
            which numpy's format does not keep.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _plain(name, np.asanyarray(array)), allow_pickle=False)


def member(archive: Any, name: str) -> np.ndarray:
    """Return an array of an open `.npz` file.

    Raises:
        ValueError: That member is no array; numpy returns its bytes.
    """
    array = archive[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name!r} is no array of numpy")  # noqa: TRY004 - of the file, not of an argument
    return array


def with_dtype(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Return what was read, with its dtype where the file has only the bytes of its values."""
    bytes_only = array.dtype.kind == "V" and array.dtype.isbuiltin == 0 and array.dtype.names is None
    if bytes_only and dtype.isbuiltin == 2 and array.dtype.itemsize == dtype.itemsize:
        return array.view(dtype)
    return array


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        strings = array.astype(str)
        if strings.astype(object).tolist() != array.tolist():
            raise ValueError(
                f"{name!r} holds objects that are no strings, or a string that ends in a null character: "
                "an .npz file without pickles does not keep them"
            )
        return strings
    foreign = array.dtype.isbuiltin == 2  # of ml_dtypes; numpy's own are 1, or 0 in another byte order
    return array.view(f"V{array.dtype.itemsize}") if foreign else array
