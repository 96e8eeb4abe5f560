"""What looks wrong with calibration data: said in the summary, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.observers import Observer
from edgeinfer.errors import CalibrationError

__all__ = ["InputNotes", "tensor_notes"]


@final
class InputNotes:
    """Watches the feeds themselves for what is not representative."""

    def __init__(self, signature: Signature) -> None:
        self._first: dict[str, np.ndarray] = {}
        self._same = True
        self._rows_of_first = 1
        # Integer inputs such as attention masks may well be constant.
        self._constant = {spec.name for spec in signature.inputs if spec.dtype.kind == "f"}

    def update(self, index: int, feed: Mapping[str, np.ndarray]) -> None:
        """Look at one feed.

        Raises:
            CalibrationError: An input has NaN or infinity.
        """
        if not self._first:
            self._first = {name: array.copy() for name, array in feed.items()}
            self._rows_of_first = next((array.shape[0] for array in feed.values() if array.ndim), 1)
        elif self._same:
            self._same = all(np.array_equal(array, self._first[name]) for name, array in feed.items())
        for name, array in feed.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise CalibrationError(
                    "A calibration sample has values that are not finite.",
                    where=f"sample {index}, input {name!r}",
                    expected="finite numbers",
                    found=f"least {low}, greatest {high}",
                    facts={"sample": index, "input": name},
                )
            if low < high:
                self._constant.discard(name)

    def sentences(self, rows: int) -> Iterator[str]:
        """Yield what is worth telling."""
        if rows == 1:
            yield "there was only one sample; ranges from one sample do not hold for others"
        elif self._same and rows > self._rows_of_first:
            yield "all samples were the same"
        for name in sorted(self._constant):
            yield f"input {name!r} was constant within every sample"


def tensor_notes(watching: Mapping[str, Sequence[Observer]]) -> Iterator[str]:
    """Yield which tensors never changed, by the observers that know the extremes."""
    for name, observers in watching.items():
        extremes = next((o.extremes for o in observers if hasattr(o, "extremes")), None)
        if extremes is None or extremes[0] < extremes[1]:
            continue
        low, high = extremes
        if low > high:
            yield f"tensor {name!r} never had any elements"
        elif low == 0:
            yield f"tensor {name!r} was zero throughout"
        else:
            # Not which: notes go into the model's history, and values of the data do not.
            yield f"tensor {name!r} had one value throughout"
