"""Which axis of an input is the batch, and gathering rows into batches of another size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from edgeinfer.artifact.signature import Dim, Signature, TensorSpec
from edgeinfer.errors import FeedsError

__all__ = ["batch_axis", "every_input_is_batched", "fixed_batch", "is_batch", "regroup"]

# Names that exporters and people give to a batch: PyTorch's guides, tf2onnx, the ONNX model zoo.
_BATCH_NAME = re.compile(r"(?i)^(n|b|bs|.*batch.*)$")
# Names of a first axis that is a length and no batch.
_LENGTH_NAME = re.compile(
    r"(?i)^(l|t|h|w|s|.*(len|seq|time|step|frame|token|sample|point|height|width|channel|class|box|num).*)$"
)


def batch_axis(spec: TensorSpec, signature: Signature) -> int | None:
    """Return the axis of an input along which independent samples lie, or None when there is none.

    It is the axis with a name that batches have. Else it is the first axis of an input with two axes or more,
    if its size is open, unless its name is that of a length or stands at another axis somewhere, too.
    """
    shape = spec.shape or ()
    named = [axis for axis, dim in enumerate(shape) if isinstance(dim, str) and _BATCH_NAME.match(dim)]
    if named:
        return named[0]
    if not shape or isinstance(shape[0], int) or not _may_be_batch(shape[0], signature):
        return None
    if len(shape) > 1:
        return 0
    # One axis may as well be a waveform: it is a batch only where it goes along with that of another input.
    others = (other.shape for other in signature.inputs if other.shape is not None and len(other.shape) > 1)
    return 0 if shape[0] is not None and any(other[0] == shape[0] for other in others) else None


def _may_be_batch(dim: Dim, signature: Signature) -> bool:
    if dim is None:
        return True
    elsewhere = {name for spec in signature.inputs for name in (spec.shape or ())[1:]}
    return dim not in elsewhere and not _LENGTH_NAME.match(str(dim))


def is_batch(signature: Signature, spec: TensorSpec, axis: int) -> bool:
    """Tell whether an axis of an input is the batch."""
    return batch_axis(spec, signature) == axis


def every_input_is_batched(signature: Signature) -> bool:
    """Tell whether the first axis of each input is the batch, so that rows can be gathered again."""
    return bool(signature.inputs) and all(batch_axis(spec, signature) == 0 for spec in signature.inputs)


def fixed_batch(signature: Signature) -> int | None:
    """Return the batch size of a model that takes no other one, or None.

    It is the first axis where all inputs have two axes or more and one size in front.
    """
    sizes = {spec.shape[0] if spec.shape and len(spec.shape) > 1 else None for spec in signature.inputs}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def regroup(
    feeds: Iterable[Mapping[str, np.ndarray]], size: int, note: Callable[[str], None]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield feeds of `size` rows, from feeds of any number of rows, in order.

    Args:
        feeds: Feeds of which each input has the same number of rows along its first axis.
        size: The number of rows to yield.
        note: Told how many rows were left out because they did not fill a batch.

    Raises:
        FeedsError: There are fewer rows than one batch takes.
    """
    pieces: list[dict[str, np.ndarray]] = []
    held = total = 0
    for feed in feeds:
        rows = _rows(feed)
        total += rows
        if rows == size and not held:
            yield dict(feed)
            continue
        start = 0
        while start < rows:
            end = min(rows, start + size - held)
            pieces.append({name: array[start:end] for name, array in feed.items()})
            held += end - start
            start = end
            if held == size:
                yield _joined(pieces)
                pieces, held = [], 0
    if held == total and total:
        raise FeedsError(
            "There are fewer samples than one batch takes.",
            expected=f"{size} or more",
            found=total,
            hint="Give more of them, or export the model with a smaller or an open batch.",
        )
    if held:
        note(f"{held} of {total} samples do not fill a batch of {size} and are left out")


def _rows(feed: Mapping[str, np.ndarray]) -> int:
    counts = {name: array.shape[0] if array.ndim else 1 for name, array in feed.items()}
    if len(set(counts.values())) > 1:
        raise FeedsError(
            "The inputs of a sample have unlike numbers of rows, so they cannot be put into batches.",
            found=", ".join(f"{name} {count}" for name, count in counts.items()),
        )
    return next(iter(counts.values()))


def _joined(pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(pieces) == 1:
        return {name: np.ascontiguousarray(array) for name, array in pieces[0].items()}
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
