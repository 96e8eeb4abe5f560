"""Where calibration data comes from: the many forms that people have it in, made one.

Each function here yields raw items; `Calibration` turns an item into checked feeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeinfer.errors import CalibrationError

__all__ = ["ItemSource", "item_source", "named_arrays"]

ItemSource = Callable[[], Iterator[Any]]


def item_source(source: Any) -> ItemSource:
    """Return a function that starts over at every call.

    Raises:
        CalibrationError: The source can be gone through only once, or is none of the forms known.
    """
    if isinstance(source, (str, os.PathLike)):
        return _folder(Path(source))
    if isinstance(source, (np.ndarray, Mapping)):
        return lambda: iter((source,))
    if hasattr(source, "get_next"):
        return _Reader(source).items
    if isinstance(source, Iterator):
        raise CalibrationError(
            "The calibration data can be gone through only once, and more than one pass is needed.",
            expected="something that can start over",
            found=f"{type(source).__name__}, which is used up after one pass",
            hint="Pass the generator function itself, not its result (`calibration=samples`, not "
            "`samples()`), or a list.",
        )
    if isinstance(source, Iterable):
        return lambda: iter(source)
    if callable(source):
        return lambda: _from_factory(source)
    raise CalibrationError(
        "That is not calibration data.",
        expected="feeds (mappings from input name to array) in a list or another re-iterable, a function "
        "that returns an iterator, an array, a folder of .npy or .npz files, a DataLoader, or a "
        "CalibrationDataReader",
        found=type(source).__name__,
    )


def named_arrays(item: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what one item of a source gives to each input, not checked yet.

    An item is a mapping from input name to array; or, for a model with one input, an array; or a tuple
    or list that starts with either (a DataLoader's `(inputs, labels)`).

    Raises:
        CalibrationError: It is none of these.
    """
    if isinstance(item, (tuple, list)) and item and (_is_array(item[0]) or isinstance(item[0], Mapping)):
        item = item[0]
    if isinstance(item, Mapping):
        return {str(name): _to_numpy(value) for name, value in item.items()}
    if _is_array(item) and len(names) == 1:
        return {names[0]: _to_numpy(item)}
    raise CalibrationError(
        "A calibration sample does not say which input it is for."
        if _is_array(item)
        else "A calibration sample is neither an array nor a mapping.",
        expected="a mapping with " + ", ".join(names),
        found=type(item).__name__,
        hint='Yield {"input name": array}.',
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_numpy(value: Any) -> Any:
    """Return an array; tensors of other libraries come through their own `numpy()`."""
    if isinstance(value, np.ndarray):
        return value
    for step in ("detach", "cpu", "numpy"):
        method = getattr(value, step, None)
        value = method() if callable(method) else value
    return value


def _from_factory(factory: Callable[[], Any]) -> Iterator[Any]:
    made = factory()
    if not isinstance(made, Iterable):
        raise CalibrationError(
            "The function given as calibration data does not return an iterator.",
            expected="an iterator of feeds",
            found=type(made).__name__,
        )
    return iter(made)


class _Reader:
    """An ONNX Runtime `CalibrationDataReader`: `get_next()` gives feeds, then None; `rewind()` restarts."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._started = False

    def items(self) -> Iterator[Any]:
        if self._started:
            rewind = getattr(self._reader, "rewind", None)
            if not callable(rewind):
                raise CalibrationError(
                    "The CalibrationDataReader cannot start over, and more than one pass is needed.",
                    where=type(self._reader).__name__,
                    hint="Give it a method `rewind()`, or pass a list of its feeds.",
                )
            rewind()
        self._started = True
        return iter(self._reader.get_next, None)


def _folder(folder: Path) -> ItemSource:
    if not folder.is_dir():
        raise CalibrationError(
            "There is no such folder of calibration data.",
            where=str(folder),
            expected="a folder of .npy or .npz files, one sample each",
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npy", ".npz") and path.is_file())
    if not files:
        raise CalibrationError("The folder has no .npy and no .npz files.", where=str(folder))
    return lambda: (_read(path) for path in files)


def _read(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)  # never pickle: it would run what a file says
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:
        raise CalibrationError(f"A calibration file cannot be read: {error}", where=str(path)) from error
    return arrays["arr_0"] if set(arrays) == {"arr_0"} else arrays
