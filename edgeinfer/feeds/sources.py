"""The many forms in which people have data, made one: a `Source` of items that can start over.

An item becomes the feed of one run: arrays by input name, arrays in the order of the inputs (what follows
them, such as labels, is left out), an array for a model with one input, the path of a file, or an image where
a preprocessing says how it becomes an input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.errors import FeedsError
from edgeinfer.feeds.files import ARRAYS, IMAGES, files_in, read_file
from edgeinfer.feeds.preprocessing import Preprocessing

__all__ = ["Source", "named_arrays", "source_of"]

_FORMS = (
    "arrays by input name, a list of such, a function that returns an iterator of them, an array or a list "
    "of arrays for a model with one input, a folder or file of .npy, .npz or images, a DataLoader, or a "
    "CalibrationDataReader"
)


@final
@attrs.frozen(kw_only=True)
class Source:
    """Where items come from.

    Attributes:
        items: Starts over and returns an iterator.
        what: What it is, for messages and reports.
        count: How many items there are, if that is known.
        held: The items, where they are in memory already.
        stacked: Whether it is one item, not a list of them: its rows may be many samples.
    """

    items: Callable[[], Iterator[Any]]
    what: str
    count: int | None = None
    held: tuple[Any, ...] | None = attrs.field(default=None, repr=False)
    stacked: bool = False

    @classmethod
    def of_list(cls, items: Iterable[Any], what: str) -> Source:
        """Return a source of items that are in memory, or of paths."""
        held = tuple(items)
        return cls(items=lambda: iter(held), what=what, count=len(held), held=held)

    @classmethod
    def of_one(cls, item: Any, what: str) -> Source:
        """Return a source of one item."""
        return attrs.evolve(cls.of_list([item], what), stacked=True)


def source_of(source: Any, preprocessing: Preprocessing | None = None) -> Source:
    """Return a Source.

    Raises:
        FeedsError: The data can be gone through only once, or is of no known form.
    """
    if isinstance(source, (str, os.PathLike)):
        return _of_path(Path(source), preprocessing)
    if isinstance(source, Mapping):
        return Source.of_one(source, "one feed")
    if _is_array(source):
        return Source.of_one(source, "one array")
    if hasattr(source, "get_next"):
        return _of_reader(source)
    if isinstance(source, Iterator):
        raise _used_up(source)
    if isinstance(source, (list, tuple)):
        return Source.of_list(source, f"{len(source)} feeds")
    if isinstance(source, Iterable):
        count = len(source) if isinstance(source, Sized) and _has_length(source) else None
        return Source(items=_Fresh(lambda: iter(source)), what=f"a {type(source).__name__}", count=count)
    if callable(source):
        name = getattr(source, "__name__", type(source).__name__)
        return Source(items=_Fresh(lambda: _made_by(source)), what=f"the function {name}")
    raise FeedsError(
        "Those are no feeds.",
        expected=_FORMS,
        found=type(source).__name__,
        hint="A torch Dataset goes into a DataLoader, which adds the batch axis."
        if hasattr(source, "__getitem__")
        else None,
    )


def named_arrays(item: Any, names: tuple[str, ...], preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Return what one item has for each input; dtypes and shapes are not checked yet.

    Raises:
        FeedsError: The item is of no known form, or does not say which input it is for.
    """
    if isinstance(item, os.PathLike):
        item = read_file(Path(item), names, preprocessing)
    elif preprocessing is not None:
        item = _prepared(item, preprocessing)
    if isinstance(item, (tuple, list)) and item:
        if isinstance(item[0], Mapping):
            item = item[0]  # a DataLoader's (inputs, labels)
        elif len(item) >= len(names) and all(_is_array(value) for value in item[: len(names)]):
            item = dict(zip(names, item, strict=False))
    if isinstance(item, Mapping):
        return {str(name): _to_numpy(value) for name, value in item.items()}
    if _is_array(item) and len(names) == 1:
        return {names[0]: _to_numpy(item)}
    raise FeedsError(
        "A sample does not say which input it is for."
        if _is_array(item)
        else "A sample is neither an array nor a mapping.",
        expected="a mapping with " + ", ".join(names),
        found=type(item).__name__,
        hint='Yield {"input name": array}.',
    )


def _prepared(item: Any, preprocessing: Preprocessing) -> Any:
    """Apply a preprocessing to an image, or to the first of a pair of image and label."""
    if isinstance(item, (tuple, list)) and item:
        return preprocessing.apply(item[0])
    return preprocessing.apply(item)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _to_numpy(value: Any) -> Any:
    """Return an array; tensors of other libraries come through their own `numpy()`."""
    if isinstance(value, np.ndarray):
        return value
    for step in ("detach", "cpu", "numpy"):
        method = getattr(value, step, None)
        value = method() if callable(method) else value
    return np.asarray(value)


def _has_length(source: Any) -> bool:
    try:
        len(source)
    except TypeError:  # a DataLoader over an iterable data set
        return False
    return True


def _used_up(source: object) -> FeedsError:
    return FeedsError(
        "The data can be gone through only once, and more than one pass is needed.",
        expected="something that can start over",
        found=f"{type(source).__name__}, which is used up after one pass",
        hint="Pass the generator function itself, not its result (`samples`, not `samples()`), or a list.",
    )


class _Fresh:
    """Starts a source over, and notices one that hands out the same iterator again."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start
        self._last: Iterator[Any] | None = None

    def __call__(self) -> Iterator[Any]:
        iterator = self._start()
        if iterator is self._last:
            raise _used_up(iterator)
        self._last = iterator
        return iterator


def _made_by(factory: Callable[[], Any]) -> Iterator[Any]:
    made = factory()
    if not isinstance(made, Iterable):
        raise FeedsError(
            "The function given as feeds does not return an iterator.",
            expected="an iterator of feeds",
            found=type(made).__name__,
        )
    return iter(made)


def _of_reader(reader: Any) -> Source:
    """An ONNX Runtime `CalibrationDataReader`: `get_next()` gives feeds, then None; `rewind()` restarts."""
    name = type(reader).__name__
    if not callable(getattr(reader, "rewind", None)):
        raise FeedsError(
            "The CalibrationDataReader cannot start over, and more than one pass is needed.",
            where=name,
            expected="a reader with get_next() and rewind()",
            hint="Give it a method `rewind()`, or pass a list of its feeds.",
        )

    def items() -> Iterator[Any]:
        reader.rewind()
        return iter(reader.get_next, None)

    return Source(items=items, what=f"a {name}")


def _of_path(path: Path, preprocessing: Preprocessing | None) -> Source:
    if path.is_dir():
        files = files_in(path, preprocessing)
        kind = "files" if preprocessing is None else "images"
        return Source.of_list(files, f"{len(files)} {kind} in {path}")
    if path.suffix.lower() not in ARRAYS | IMAGES:
        raise FeedsError(
            "That is neither a folder nor a file of arrays or of an image."
            if path.exists()
            else "There is no such folder or file.",
            where=str(path),
            expected=f"a folder, or a file: {', '.join(sorted(ARRAYS | IMAGES))}",
        )
    if not path.exists():
        raise FeedsError("There is no such file.", where=str(path))
    return Source.of_one(path, str(path))
