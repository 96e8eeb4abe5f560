"""`Calibration`, a re-iterable source of checked feeds, and `observe`, one pass that feeds all observers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import attrs
import numpy as np

from edgeinfer.artifact.inputs import InputValidator
from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.bounds import reachable_bounds
from edgeinfer.calibration.cache import CalibrationCache, Checkpoint, update_digest
from edgeinfer.calibration.data_checks import InputNotes, tensor_notes
from edgeinfer.calibration.observers import Estimating, Observer, Settling
from edgeinfer.calibration.run_ahead import RunAhead
from edgeinfer.calibration.sampler import DEFAULT_MAX_BYTES, TensorSampler
from edgeinfer.display import track
from edgeinfer.errors import CalibrationError, EdgeInferError, InputError
from edgeinfer.feeds.sources import ItemSource, item_source, named_arrays
from edgeinfer.model.model import Model

__all__ = ["Calibration", "CalibrationSummary", "Observers", "as_calibration", "observe"]

# So many samples are shown to all observers: from few samples nothing is left out.
_WHOLE_SAMPLES = 32

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

    def every_other(self) -> Calibration:
        """Return every other feed, beginning with the first."""
        return Calibration(
            lambda: (feed for index, feed in enumerate(self) if index % 2 == 0), self._signature
        )

    def hold_out(self, count: int) -> tuple[Calibration, list[dict[str, np.ndarray]]]:
        """Return the feeds to fit on and at most `count` feeds, evenly spread, to judge by.

        What was fitted on a feed looks closer on it than on others: measured on SqueezeNet, rounding weights
        gained 5 dB on the feeds that it had seen and nothing elsewhere. So the judged feeds are left out of
        those to fit on, unless they are more than a quarter of all: few feeds are too few to fit on, too.
        """
        total = sum(1 for _ in self)
        step = max(1, total // count)
        judged = [feed for index, feed in enumerate(self) if index % step == 0][:count]
        if 4 * len(judged) > total:
            return self, judged
        kept = {index * step for index in range(len(judged))}
        return Calibration(
            lambda: (feed for index, feed in enumerate(self) if index not in kept), self._signature
        ), judged

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
        turns: Over how many feeds the tensors with observers that estimate took turns; see `observe`.
        notes: What looks wrong with the data, in sentences.
    """

    samples: int
    rows: int
    tensors: int
    runs: int
    turns: int = 1
    notes: tuple[str, ...] = attrs.field(default=(), converter=_texts)


def observe(
    model: Model,
    calibration: Calibration,
    observers: Observers,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    threads: int = 0,
    cache: CalibrationCache | None = None,
    progress: bool | None = None,
) -> CalibrationSummary:
    """Run the model over the calibration data once, and let every observer see its tensor.

    Memory does not grow with the number of samples: the value of a tensor is dropped as soon as its
    observers have seen it.

    Exact observers (min-max, those per channel, moments) see the tensor's value for every feed. Observers
    that estimate a distribution (percentile, entropy, MSE, moving average; see `Estimating`) see it for the
    first 32 samples. After that the tensors take turns: each feed is run as far as a third of them needs,
    and what a tensor has at every third feed counts three times, so that every sample weighs the same. The
    extremes that such an observer knows are those of what it saw. There are fewer turns when three times the
    weights exceed `max_bytes`. A tensor between known bounds, such as those of ReLU6, whose min-max observer
    has seen both is not looked at any more: its extremes cannot change.

    Args:
        model: The model; it is run by ONNX Runtime.
        calibration: The data.
        observers: One observer or several for each tensor of the main graph, by the tensor's name.
        max_bytes: How many bytes of observed tensors may be held at once. When one feed's need more, large
            batches are cut, then the tensors are computed in several runs.
        threads: How many feeds are run at once, each on one thread: so nothing depends on how many cores
            there are. 0 for one a core.
        cache: Where to keep the observers' states during the pass; a pass that was interrupted goes on
            from there, and one that was finished costs only the reading of its data.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        CalibrationError: There are no samples, a sample does not fit, or a tensor has NaN or infinity.
        TransformError: The graph has no such tensor.
    """
    watching = {
        name: tuple(watch) if isinstance(watch, Sequence) else (watch,) for name, watch in observers.items()
    }
    notes = InputNotes(model.signature)
    samples = rows = 0
    checkpoint = Checkpoint(cache, model, watching, calibration) if cache is not None else None
    done = checkpoint.resume() if checkpoint is not None else 0
    estimated = {name for name, watch in watching.items() if all(isinstance(o, Estimating) for o in watch)}
    with TensorSampler(
        model, tuple(watching), estimated=estimated, max_bytes=max_bytes, threads=threads
    ) as sampler:
        seen = turn = 0

        def show(index: int, name: str, array: np.ndarray, weight: int) -> None:
            _show(index, name, array, weight, watching[name])

        saw = checkpoint.saw if checkpoint is not None else None
        with RunAhead(sampler, show, saw) as ahead:
            for index, feed in enumerate(track(calibration, "calibrating", progress=progress)):
                notes.update(index, feed)
                late = seen >= _WHOLE_SAMPLES
                if index >= done:
                    if late and not sampler.taking_turns:
                        ahead.finish()
                        sampler.take_turns(_settled(model, watching))
                    ahead.show(index, feed, turn)
                samples += 1
                seen += sampler.batch(feed)
                turn += late
                rows += next((array.shape[0] for array in feed.values() if array.ndim), 1)
    if checkpoint is not None:
        checkpoint.finish()
    stored_notes = checkpoint.notes if checkpoint is not None else []
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
        turns=sampler.turns,
        notes=[*notes.sentences(rows), *tensor_notes(watching), *sampler.notes, *stored_notes],
    )


def _settled(model: Model, watching: Mapping[str, Sequence[Observer]]) -> list[str]:
    """Return the tensors of which no observer needs to see more."""
    return [
        name
        for name, bounds in reachable_bounds(model).items()
        if all(isinstance(o, Settling) and o.settled(*bounds) for o in watching.get(name, (None,)))
    ]


def _show(index: int, name: str, array: np.ndarray, weight: int, watching: Sequence[Observer]) -> None:
    for observer in watching:
        try:
            if weight == 1:
                observer.update(array)
            else:  # only tensors whose observers all estimate are weighted
                cast("Estimating", observer).update_weighted(array, weight)
        except CalibrationError as error:
            raise CalibrationError(
                error.what,
                where=f"sample {index}, tensor {name!r}",
                expected=error.expected,
                found=error.found,
                hint=error.hint or "Look at that sample, and at the model's output for it.",
                facts={**error.facts, "sample": index, "tensor": name},
            ) from error
