"""`observe`, one pass over the feeds that shows tensors to all observers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.bounds import reachable_bounds
from edgeinfer.calibration.cache import CalibrationCache, Checkpoint
from edgeinfer.calibration.data_checks import InputNotes, tensor_notes
from edgeinfer.calibration.observers import Estimating, Observer, Settling
from edgeinfer.calibration.run_ahead import RunAhead
from edgeinfer.calibration.sampler import DEFAULT_MAX_BYTES, TensorSampler
from edgeinfer.display import track
from edgeinfer.errors import CalibrationError
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.model.model import Model

__all__ = ["Calibration", "CalibrationSummary", "Observers", "as_calibration", "observe"]

# So many samples are shown to all observers: from few samples nothing is left out.
_WHOLE_SAMPLES = 32

Observers: TypeAlias = "Mapping[str, Observer | Sequence[Observer]]"


# The data of a calibration is feeds like any other.
Calibration: TypeAlias = Feeds


def as_calibration(source: Any, signature: Signature) -> Feeds:
    """Return feeds to calibrate with, from whatever holds the data; see `Feeds.of`.

    The rows of one array, mapping or file are taken one by one where the batch is open: as many samples are
    in it, and one at a time is how a device runs them.

    Raises:
        FeedsError: The source is of no known form or can be used only once. What is wrong with a sample is
            raised when it is reached.
    """
    return Feeds.of(source, signature).row_by_row()


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
        notes=[
            *notes.sentences(rows),
            *tensor_notes(watching),
            *sampler.notes,
            *stored_notes,
            *calibration.notes,
        ],
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
