"""The same data in every form that `Feeds.of` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Items = Sequence[dict[str, np.ndarray]]


class Tensor:
    """What this library sees of a PyTorch tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape, self.dtype = array, array.shape, f"torch.{array.dtype}"

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self._array


class Loader:
    """What this library sees of a DataLoader: inputs in order, then labels."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self):
        return iter(
            [
                [*(Tensor(array) for array in item.values()), Tensor(np.zeros(1, np.int64))]
                for item in self._items
            ]
        )


class Reader:
    """A CalibrationDataReader of ONNX Runtime."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self.rewind()

    def rewind(self) -> None:
        self._left = list(self._items)

    def get_next(self):
        return self._left.pop(0) if self._left else None


def npz_folder(items: Items, folder: Path) -> Path:
    for index, item in enumerate(items):
        np.savez(folder / f"{index:04}.npz", labels=np.zeros(1), **item)
    return folder


def npy_folder(items: Items, folder: Path) -> Path:
    for index, item in enumerate(items):
        (array,) = item.values()
        np.save(folder / f"{index:04}.npy", array)
    return folder


def paths(items: Items, folder: Path) -> list[Path]:
    return sorted(npz_folder(items, folder).iterdir())


# By name: what makes the source, and whether it is for a model with one input only.
FORMS: dict[str, tuple[Callable[[Items, Path], Any], bool]] = {
    "mappings": (lambda items, _: [dict(item) for item in items], False),
    "tuple of mappings": (lambda items, _: tuple(items), False),
    "arrays": (lambda items, _: [next(iter(item.values())) for item in items], True),
    "generator function": (lambda items, _: lambda: (dict(item) for item in items), False),
    "pairs with labels": (lambda items, _: [(dict(item), 7) for item in items], False),
    "loader": (lambda items, _: Loader(items), False),
    "reader": (lambda items, _: Reader(items), False),
    "npz folder": (npz_folder, False),
    "npz folder as text": (lambda items, folder: str(npz_folder(items, folder)), False),
    "npy folder": (npy_folder, True),
    "paths": (paths, False),
}
