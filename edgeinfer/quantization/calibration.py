"""`Calibration`, a re-iterable source of checked feeds, and `observe`, one pass that feeds all observers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.display import track
from edgeinfer.errors import CalibrationError, EdgeInferError, InputError
from edgeinfer.model import Model
from edgeinfer.quantization.observers import Observer
from edgeinfer.quantization.sampler import DEFAULT_MAX_BYTES, TensorSampler
from edgeinfer.quantization.sources import ItemSource, item_source, named_arrays
from edgeinfer.signature import Signature
from edgeinfer.validation import InputValidator

__all__ = ["Calibration", "CalibrationSummary", "Observers", "as_calibration", "observe"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"
Observers: TypeAlias = "Mapping[str, Observer | Sequence[Observer]]"


@final
class Calibration:
    """Feeds that fit a model, which can be gone through any number of times. Made by `as_calibration`.

    Iterating yields mappings from input name to array. Whatever is wrong with the data is raised as
    CalibrationError with the number of the sample.
    """

    def __init__(self, items: ItemSource, signature: Signature, *, limit: int | None = None) -> None:
        self._items = items
        self._signature = signature
        self._limit = limit
        self._validate = InputValidator(signature).check
        self._names = tuple(spec.name for spec in signature.inputs)

    @property
    def signature(self) -> Signature:
        """The signature that every feed fits."""
        return self._signature

    def take(self, count: int) -> Calibration:
        """Return the same source, cut off after `count` feeds."""
        limit = count if self._limit is None else min(count, self._limit)
        return Calibration(self._items, self._signature, limit=limit)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        given = 0
        for index, item in enumerate(self._raw()):
            for feed in self._feeds(index, item):
                if given == self._limit:
                    return
                given += 1
                yield feed

    def fingerprint(self) -> str:
        """Return the SHA-256 of all feeds, 64 hexadecimal digits. Goes through all of them."""
        digest = hashlib.sha256()
        for feed in self:
            update_digest(digest, feed)
        return digest.hexdigest()

    def _raw(self) -> Iterator[Any]:
        """Yield the source's items; a failure of the source itself is wrapped with its place."""
        index = 0
        try:
            for item in self._items():
                yield item
                index += 1
        except EdgeInferError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"The calibration source failed: {type(error).__name__}: {error}", where=f"sample {index}"
            ) from error

    def _feeds(self, index: int, item: Any) -> Iterator[dict[str, np.ndarray]]:
        try:
            for feed in self._split(named_arrays(item, self._names)):
                yield dict(self._validate(feed))
        except (InputError, CalibrationError) as error:
            place = f"sample {index}" if error.where is None else f"sample {index}, {error.where}"
            raise CalibrationError(
                error.what,
                where=place,
                expected=error.expected,
                found=error.found,
                hint=error.hint,
                facts={**error.facts, "sample": index},
            ) from error

    def _split(self, feed: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Cut a batch into batches of the fixed size that the model has, if it is a multiple of it."""
        parts: set[int] = set()
        for spec in self._signature.inputs:
            array = feed.get(spec.name)
            fixed = spec.shape[0] if spec.shape else None
            if not isinstance(fixed, int) or fixed < 1 or not isinstance(array, np.ndarray):
                parts.add(1)
                continue
            fits = array.ndim == len(spec.shape or ()) and array.shape[0] % fixed == 0
            parts.add(array.shape[0] // fixed if fits else 1)
        count = parts.pop()
        if parts or count <= 1:
            yield feed
            return
        pieces = {name: np.split(array, count) for name, array in feed.items()}
        for i in range(count):
            yield {name: piece[i] for name, piece in pieces.items()}


def as_calibration(source: Any, signature: Signature) -> Calibration:
    """Return a Calibration from whatever holds the data.

    Args:
        source: Feeds (mappings from input name to array, batch axis included) in a list or another
            re-iterable; a function that returns an iterator of them; one feed; for a model with one input,
            arrays in the places of feeds; a folder of `.npy` or `.npz` files, one sample each, by name; a
            PyTorch DataLoader (of `(inputs, labels)`, the inputs are taken); an ONNX Runtime
            `CalibrationDataReader`; a Calibration. Batches are split for models with a fixed batch size.
        signature: The signature of the model.

    Raises:
        CalibrationError: The source is of no known form or can be used only once. What is wrong with a
            sample is raised when it is reached.
    """
    if isinstance(source, Calibration):
        if source.signature == signature:
            return source
        return Calibration(lambda: iter(source), signature)
    return Calibration(item_source(source), signature)


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@final
@attrs.frozen(kw_only=True)
class CalibrationSummary:
    """What a calibration pass saw.

    Attributes:
        samples: How many feeds.
        rows: How many rows along the first axis of the first input, that is images or sentences.
        tensors: How many tensors were observed.
        runs: How often (a part of) the model was run.
        notes: What looks wrong with the data, in sentences.
    """

    samples: int
    rows: int
    tensors: int
    runs: int
    notes: tuple[str, ...] = attrs.field(default=(), converter=_texts)


def observe(
    model: Model,
    calibration: Calibration,
    observers: Observers,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int = 0,
    progress: bool | None = None,
) -> CalibrationSummary:
    """Run the model over the calibration data once, and let every observer see its tensor.

    Memory does not grow with the number of samples: the value of a tensor is dropped as soon as its
    observers have seen it.

    Args:
        model: The model; it is run by ONNX Runtime.
        calibration: The data.
        observers: One observer or several for each tensor of the main graph, by the tensor's name.
        max_bytes: How many bytes of observed tensors may be held at once. When one feed's need more, large
            batches are cut, then the tensors are computed in several runs.
        threads: Threads within an operator; 0 lets the runtime choose.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        CalibrationError: There are no samples, a sample does not fit, or a tensor has NaN or infinity.
        TransformError: The graph has no such tensor.
    """
    watching = {
        name: tuple(watch) if isinstance(watch, Sequence) else (watch,) for name, watch in observers.items()
    }
    notes = _InputNotes(model.signature)
    samples = rows = 0
    with TensorSampler(model, tuple(watching), max_bytes=max_bytes, threads=threads) as sampler:
        for index, feed in enumerate(track(calibration, "calibrating", progress=progress)):
            notes.update(index, feed)
            for name, array in sampler.tensors(feed):
                _show(index, name, array, watching[name])
            samples += 1
            rows += next((array.shape[0] for array in feed.values() if array.ndim), 1)
    if not samples:
        raise CalibrationError(
            "There is no calibration data: the source gave no samples.",
            expected="at least one feed, better a hundred",
            found="0 samples",
        )
    return CalibrationSummary(
        samples=samples,
        rows=rows,
        tensors=len(watching),
        runs=sampler.runs,
        notes=[*notes.sentences(rows), *_tensor_notes(watching), *sampler.notes],
    )


def update_digest(digest: Any, feed: Feed) -> None:
    """Add a feed to a `hashlib` digest: names, dtypes, shapes and values."""
    for name in sorted(feed):
        array = feed[name]
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        data = (
            repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
        )
        digest.update(data)


def _show(index: int, name: str, array: np.ndarray, watching: Sequence[Observer]) -> None:
    for observer in watching:
        try:
            observer.update(array)
        except CalibrationError as error:
            raise CalibrationError(
                error.what,
                where=f"sample {index}, tensor {name!r}",
                expected=error.expected,
                found=error.found,
                hint=error.hint or "Look at that sample, and at the model's output for it.",
                facts={**error.facts, "sample": index, "tensor": name},
            ) from error


def _tensor_notes(watching: Mapping[str, Sequence[Observer]]) -> Iterator[str]:
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
            yield f"tensor {name!r} had the one value {low:g} throughout"


@final
class _InputNotes:
    """Watches the feeds themselves for what is not representative."""

    def __init__(self, signature: Signature) -> None:
        self._first: dict[str, np.ndarray] = {}
        self._same = True
        self._rows_of_first = 1
        # Integer inputs such as attention masks may well be constant.
        self._constant = {spec.name for spec in signature.inputs if spec.dtype.kind == "f"}

    def update(self, index: int, feed: Feed) -> None:
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
