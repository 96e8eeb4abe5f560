"""Golden feeds of a release: inputs, and the outputs that a device must give for them, within tolerances.

One `.npz` file for each variant, in the bundle: `rtol`, `atol`, and for feed number 0, 1, … the bytes of a
file as an artifact's own golden inputs are in.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeinfer.artifact.golden import MAX_UNPACKED_BYTES, pack_golden, unpack_golden
from edgeinfer.artifact.manifest import Golden
from edgeinfer.artifact.signature import Signature
from edgeinfer.fleet.errors import ReleaseError
from edgeinfer.npz import write_npz

__all__ = ["golden_file", "read_golden"]

_MAX_FEEDS = 1000


def golden_file(
    feeds: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]], *, rtol: float, atol: float
) -> bytes:
    """Return the file of golden feeds.

    Args:
        feeds: Inputs and outputs, by name.
        rtol: The relative tolerance, as in `numpy.allclose`.
        atol: The absolute tolerance.
    """
    parts = [pack_golden(inputs, outputs, rtol=rtol, atol=atol) for inputs, outputs in feeds]
    arrays = {"rtol": np.array(rtol, np.float64), "atol": np.array(atol, np.float64)}
    for index, part in enumerate(parts):
        arrays[f"{index}"] = np.frombuffer(part.npz, np.uint8)
    buffer = io.BytesIO()
    write_npz(buffer, arrays)
    return buffer.getvalue()


def read_golden(path: str | os.PathLike[str], signature: Signature) -> tuple[Golden, ...]:
    """Return golden feeds, for `compare_golden`.

    Args:
        path: The file that the variant's `golden` names.
        signature: That of the artifact.

    Raises:
        ReleaseError: The file is no such file.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as archive:
            tolerance = Golden(rtol=float(archive["rtol"]), atol=float(archive["atol"]))
            parts = [
                archive[str(index)].tobytes() for index in range(min(len(archive.files) - 2, _MAX_FEEDS))
            ]
        return tuple(unpack_golden(tolerance, part, signature, where=str(path)) for part in parts)
    except Exception as error:  # zipfile and zlib have errors of their own
        raise ReleaseError(
            "The golden feeds cannot be read.",
            where=str(path),
            expected=f"numpy arrays of at most {MAX_UNPACKED_BYTES >> 20} MiB a feed",
            found=f"{type(error).__name__}: {error}",
        ) from error
