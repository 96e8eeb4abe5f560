"""Writing `.npz` files whose arrays may have any name, with every numpy version that is supported."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

__all__ = ["write_npz"]


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
        ValueError: An array holds Python objects, which only a pickle could store.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
