"""Live inputs and answers in files: an application writes them, the staging child reads them (shadow).

Each is one `.npz` without pickles, whole or not there. They are many, so none is synced, and they are few on
disk at once: the reader removes what it has read, and the writer stops when the folder is full.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.npz import write_npz

__all__ = ["Sample", "read_sample", "take_samples", "write_sample"]

_POLL_S = 0.05


@final
@attrs.frozen(kw_only=True, eq=False)
class Sample:
    """One request that was served.

    Attributes:
        inputs: By name.
        outputs: What the running model answered.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def write_sample(path: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Write a request.

    Raises:
        OSError: It cannot be written.
        ValueError: An array holds what only a pickle could store.
    """
    arrays = {f"in:{name}": _plain(array) for name, array in inputs.items()}
    arrays |= {f"out:{name}": _plain(array) for name, array in outputs.items()}
    draft = path.with_suffix(".draft")
    try:
        write_npz(draft, arrays)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def read_sample(path: Path, signature: Signature) -> Sample | None:
    """Read a request; None where it cannot be (the file went, or the disk is bad)."""
    specs = {f"in:{spec.name}": spec for spec in (*signature.inputs, *signature.optional)}
    specs |= {f"out:{spec.name}": spec for spec in signature.outputs}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {n: _declared(archive[n], specs[n]) for n in archive.files if n in specs}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return Sample(
        inputs={name[3:]: array for name, array in arrays.items() if name.startswith("in:")},
        outputs={name[4:]: array for name, array in arrays.items() if name.startswith("out:")},
    )


def take_samples(folder: Path, *, end: float) -> Iterator[Path]:
    """Yield files as they come, oldest first, until the monotonic clock reaches `end`."""
    while time.monotonic() < end:
        found = sorted(folder.glob("*.npz"))
        yield from found
        if not found:
            time.sleep(_POLL_S)


def _plain(array: np.ndarray) -> np.ndarray:
    """Return strings in numpy's own form, which needs no pickle."""
    return array.astype(str) if array.dtype == object else np.asarray(array)


def _declared(array: np.ndarray, spec: TensorSpec) -> Any:
    """Undo what the file did to strings, and to dtypes that numpy does not have (they come as raw bytes)."""
    if array.dtype.kind == "U":
        return array.astype(object)
    return array.view(spec.dtype) if array.dtype.kind == "V" else array
