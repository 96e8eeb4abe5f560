"""Feeds in files: `.npy`, `.npz`, images. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeinfer.errors import FeedsError
from edgeinfer.feeds.preprocessing import Preprocessing, pillow
from edgeinfer.npz import member

__all__ = ["ARRAYS", "IMAGES", "files_in", "read_array", "read_file"]

ARRAYS = frozenset({".npy", ".npz"})
IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# An .npy file above this size is mapped, so that only the rows in use are in memory.
_MAPPED_BYTES = 64 << 20


def files_in(folder: Path, preprocessing: Preprocessing | None) -> tuple[Path, ...]:
    """Return the files of a folder that hold samples, in order of their names.

    Without a preprocessing these are its `.npy` and `.npz` files; with one its images, and those of the
    folders in it.

    Raises:
        FeedsError: There are none.
    """
    if preprocessing is None:
        found = [path for path in folder.iterdir() if _is_sample(path, ARRAYS)]
    else:
        found = [path for path in folder.rglob("*") if _is_sample(path, IMAGES)]
    if found:
        return tuple(sorted(found))
    if preprocessing is None and any(_is_sample(path, IMAGES) for path in folder.rglob("*")):
        raise FeedsError(
            "The folder has images, and it is not said how an image becomes an input.",
            where=str(folder),
            expected="a Preprocessing, or .npy or .npz files",
            hint="Feeds.of(folder, signature, Preprocessing(size=224, ...)); --images with --preprocessing.",
        )
    kinds = "images" if preprocessing is not None else ".npy and no .npz files"
    raise FeedsError(f"The folder has no {kinds}.", where=str(folder))


def _is_sample(path: Path, suffixes: frozenset[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def read_file(
    path: Path,
    names: Sequence[str],
    preprocessing: Preprocessing | None = None,
    *,
    optional: Sequence[str] = (),
) -> Any:
    """Return what a file has for each input: an array for the only input, or arrays by name.

    Of an `.npz` file the members with the names of inputs are taken; for a model with one input also the only
    member, whatever its name.

    Args:
        path: An `.npy`, `.npz` or image file.
        names: The names of the inputs.
        preprocessing: How an image becomes an input.
        optional: The names of inputs that have a default.

    Raises:
        FeedsError: It is missing, of another kind, damaged, or lacks an input.
    """
    if path.suffix.lower() in IMAGES:
        return _read_image(path, preprocessing)
    if preprocessing is not None:
        raise FeedsError(
            "A preprocessing is for images.", where=str(path), expected=", ".join(sorted(IMAGES))
        )
    with _explained(path):
        if path.suffix == ".npy" and path.stat().st_size > _MAPPED_BYTES:
            return np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as file:  # numpy itself leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            members = _members(loaded.files, names, path)
            members |= {name: name for name in optional if name in loaded.files}
            return {name: member(loaded, stored) for name, stored in members.items()}


def read_array(path: Path) -> np.ndarray:
    """Return the array of an `.npy` file.

    Raises:
        FeedsError: It is missing, or not one numpy array.
    """
    with _explained(path), path.open("rb") as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise FeedsError("That file holds several arrays.", where=str(path), expected="an .npy file")
    return array


def _members(members: Sequence[str], names: Sequence[str], path: Path) -> dict[str, str]:
    if len(names) == len(members) == 1:
        return {names[0]: members[0]}
    if not set(names) <= set(members):
        raise FeedsError(
            "The file lacks an input of the model.",
            where=str(path),
            expected=", ".join(names),
            found=", ".join(members) or "no array",
        )
    return {name: name for name in names}


def _read_image(path: Path, preprocessing: Preprocessing | None) -> np.ndarray:
    if preprocessing is None:
        raise FeedsError(
            "It is not said how an image becomes an input.", where=str(path), expected="a Preprocessing"
        )
    library = pillow()
    try:
        with library.open(path) as image:
            return preprocessing.apply(image)
    except FeedsError as error:
        error.where = str(path)
        raise
    except Exception as error:  # Pillow's plugins raise errors of many kinds
        raise FeedsError(
            "The image cannot be read.", where=str(path), found=f"{type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what reading a file of arrays raises into a FeedsError; a damaged archive raises many kinds."""
    try:
        yield
    except FeedsError:
        raise
    except FileNotFoundError as error:
        raise FeedsError("There is no such file.", where=str(path)) from error
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeedsError(
            "That is not a file of numpy arrays, or it is damaged.",
            where=str(path),
            expected="what numpy.save or numpy.savez wrote, without pickled objects",
            found=text,
        ) from error
