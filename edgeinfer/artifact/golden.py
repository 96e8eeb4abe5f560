"""Golden inputs and outputs: as a file, and compared with what a device computes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from edgeinfer.artifact.manifest import Golden
from edgeinfer.artifact.signature import Signature
from edgeinfer.errors import ArtifactError, GoldenMismatchError
from edgeinfer.npz import member, write_npz

__all__ = ["compare_golden", "pack_golden", "unpack_golden"]

_HINT = "The device computes something else: do not activate this artifact here."
# An archive of a few bytes may unpack to more than the memory.
MAX_UNPACKED_BYTES = 1 << 30


def pack_golden(
    inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], *, rtol: float, atol: float
) -> Golden:
    """Return the golden values with the `.npz` file that holds them."""
    buffer = io.BytesIO()
    arrays = {f"in:{name}": _without_objects(array) for name, array in inputs.items()}
    arrays |= {f"out:{name}": _without_objects(array) for name, array in outputs.items()}
    write_npz(buffer, arrays, compress=True)
    return Golden(rtol=rtol, atol=atol, inputs=dict(inputs), outputs=dict(outputs), npz=buffer.getvalue())


def unpack_golden(golden: Golden, data: bytes, signature: Signature, *, where: str) -> Golden:
    """Return `golden` with the arrays of its `.npz` file.

    Args:
        golden: The tolerances.
        data: The file's contents. Nothing in them is ever unpickled.
        signature: Its dtypes are those of the arrays.
        where: The file's path, for error messages.

    Raises:
        ArtifactError: The file is none of numpy's, holds pickles, or unpacks to more than 1 GiB.
    """
    try:
        _check_unpacked_size(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: member(archive, name) for name in archive.files}
    except Exception as error:  # zipfile and zlib have errors of their own
        raise ArtifactError(
            f"The golden inputs cannot be read: {error}",
            where=where,
            expected="arrays in numpy's .npz format, without pickles",
            hint="Make the artifact again with Artifact.with_golden.",
        ) from error
    dtypes = {f"in:{spec.name}": spec.dtype for spec in signature.inputs}
    dtypes |= {f"out:{spec.name}": spec.dtype for spec in signature.outputs}
    arrays = {name: _as_declared(array, dtypes.get(name)) for name, array in arrays.items()}
    return attrs.evolve(
        golden,
        inputs={name[3:]: array for name, array in arrays.items() if name.startswith("in:")},
        outputs={name[4:]: array for name, array in arrays.items() if name.startswith("out:")},
        npz=data,
    )


def compare_golden(golden: Golden, outputs: Mapping[str, np.ndarray]) -> None:
    """Compare as `numpy.allclose` does: |found - expected| <= atol + rtol * |expected|, NaN equal to NaN.

    Args:
        golden: The expected outputs and the tolerances.
        outputs: What was computed from `golden.inputs`, by output name.

    Raises:
        GoldenMismatchError: It names the first output that differs, and the worst element of it.
    """
    for name, expected in golden.outputs.items():
        found = outputs.get(name)
        if found is None:
            raise GoldenMismatchError(
                "An output is missing.",
                where=f"output {name!r}",
                expected=", ".join(golden.outputs),
                found=", ".join(outputs) or "no output",
                hint="The golden outputs are of another model; make them again.",
            )
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise GoldenMismatchError(
                "An output has another shape or dtype than the golden one.",
                where=f"output {name!r}",
                expected=f"{expected.dtype} {expected.shape}",
                found=f"{found.dtype} {found.shape}",
                hint=_HINT,
            )
        _compare(name, found, expected, golden)


def _compare(name: str, found: np.ndarray, expected: np.ndarray, golden: Golden) -> None:
    if expected.dtype.kind not in "fiubc":  # strings, and dtypes that numpy does not have: by value
        different = int(np.sum(found != expected))
        if different:
            raise GoldenMismatchError(
                "An output differs.",
                where=f"output {name!r}",
                expected="the golden values",
                found=f"{different} of {expected.size} elements differ",
                hint=_HINT,
            )
        return
    left, right = found.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(left - right)
    difference[(left == right) | (np.isnan(left) & np.isnan(right))] = 0  # also equal infinities
    difference[np.isnan(difference)] = np.inf
    failing = difference > golden.atol + golden.rtol * np.where(np.isfinite(right), np.abs(right), 0)
    if not failing.any():
        return
    worst = np.unravel_index(int(np.argmax(np.where(failing, difference, -1))), difference.shape)
    raise GoldenMismatchError(
        f"An output differs by up to {difference[worst]:.6g} from the golden one.",
        where=f"output {name!r} at {tuple(int(index) for index in worst)}",
        expected=f"{right[worst]:.6g} within rtol {golden.rtol:g} and atol {golden.atol:g}",
        found=f"{left[worst]:.6g}; {int(failing.sum())} of {failing.size} elements are outside",
        hint=_HINT,
        facts={"output": name, "worst": float(difference[worst])},
    )


def _check_unpacked_size(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise ValueError(f"they unpack to {size / 1e9:.1f} GB")


def _without_objects(array: np.ndarray) -> np.ndarray:
    """Return strings in numpy's own form, which needs no pickle."""
    return array.astype(str) if array.dtype == object else array


def _as_declared(array: np.ndarray, dtype: np.dtype[Any] | None) -> np.ndarray:
    """Undo what the file did to strings, and to dtypes that numpy does not have (they come as raw bytes)."""
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "V" and dtype is not None and dtype.itemsize == array.dtype.itemsize:
        return array.view(dtype)
    return array
