"""Inputs from files: `.npy`, `.npz`, or a folder of them. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.errors import InputError
from edgeinfer.npz import as_spec

__all__ = ["FileFeeds", "read_array", "read_arrays", "read_feeds"]


@final
@attrs.frozen
class FileFeeds:
    """A re-iterable of feeds, read file by file."""

    files: tuple[Path, ...]
    signature: Signature

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        for file in self.files:
            yield from _split(read_arrays(file, self.signature), self.signature)


def read_feeds(path: str | Path, signature: Signature) -> FileFeeds:
    """Return the feeds of an `.npz` or `.npy` file, or of every such file in a folder, in order of name.

    An array that holds more samples than the model's fixed batch size takes is split along its first axis.

    Raises:
        InputError: There is nothing to read, or it is not numpy data.
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy")) if path.is_dir() else [path]
    if not files:
        raise InputError("The folder has no .npz or .npy file.", where=str(path))
    return FileFeeds(tuple(files), signature)


def read_array(path: Path) -> np.ndarray:
    """Return the array of an `.npy` file.

    Raises:
        InputError: It is missing, or not one numpy array.
    """
    array = _load(path)
    if not isinstance(array, np.ndarray):
        raise InputError("That file holds several arrays.", where=str(path), expected="an .npy file")
    return array


def read_arrays(path: Path, signature: Signature) -> dict[str, np.ndarray]:
    """Return the arrays of a file by input name; an `.npy` file is for a model with one input.

    Raises:
        InputError: It is missing, not numpy data, or lacks an input.
    """
    loaded = _load(path)
    arrays = {signature.inputs[0].name: loaded} if isinstance(loaded, np.ndarray) else loaded
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and names[0] not in arrays and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    specs = (*signature.inputs, *signature.optional)
    chosen = {spec.name: as_spec(arrays[spec.name], spec) for spec in specs if spec.name in arrays}
    if not chosen.keys() >= set(names):
        raise InputError(
            "The file lacks an input of the model.",
            where=str(path),
            expected=", ".join(names),
            found=", ".join(arrays) or "no array",
        )
    return chosen


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError("There is no such file.", where=str(path)) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            "That is not a file of numpy arrays.", where=str(path), found=str(error).splitlines()[0]
        ) from error


def _split(arrays: Mapping[str, np.ndarray], signature: Signature) -> Iterator[Mapping[str, np.ndarray]]:
    batches = [spec.shape[0] for spec in signature.inputs if spec.shape]
    fixed = next((size for size in batches if isinstance(size, int)), None)
    counts = {array.shape[0] for array in arrays.values() if array.ndim}
    if fixed is None or len(counts) != 1 or counts == {fixed}:
        yield arrays
        return
    count = counts.pop()
    for start in range(0, count - fixed + 1, fixed):
        yield {name: array[start : start + fixed] for name, array in arrays.items()}
