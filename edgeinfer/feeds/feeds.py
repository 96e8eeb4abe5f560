"""`Feeds`: the one reader of inputs. Calibration, evaluation, benchmarks and golden inputs all use it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.artifact.inputs import InputValidator
from edgeinfer.artifact.signature import Signature
from edgeinfer.errors import EdgeInferError, FeedsError, InputError
from edgeinfer.feeds.batch import every_input_is_batched, fixed_batch, regroup
from edgeinfer.feeds.preprocessing import Preprocessing
from edgeinfer.feeds.sources import Source, named_arrays, source_of

__all__ = ["Feed", "FeedIterable", "Feeds", "feed_nbytes", "update_digest"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"
FeedIterable: TypeAlias = "Iterable[Mapping[str, np.ndarray]]"


@final
@attrs.frozen(eq=False, repr=False)
class Feeds:
    """Inputs that fit a model, which can be gone through any number of times. Made by `Feeds.of`.

    Iterating yields mappings from input name to array, one for each run, and holds no more than one of them.
    Whatever is wrong with the data is a FeedsError with the number of the sample.

    Attributes:
        signature: The signature that every feed fits.
        what: What the data is, for reports.
        stacked: Whether it is one array, one mapping or one file, the rows of which may be many samples.
    """

    signature: Signature
    what: str
    _start: Callable[[], Iterator[dict[str, np.ndarray]]]
    _count: Callable[[], int | None]
    _rows: Callable[[], int | None]
    _notes: dict[str, None]
    stacked: bool = False

    @classmethod
    def of(
        cls,
        source: Any,
        signature: Signature,
        preprocessing: Preprocessing | None = None,
        *,
        keep_device_arrays: bool = False,
    ) -> Feeds:
        """Read feeds from whatever holds the data.

        Args:
            source: Arrays by input name, batch axis included; a list or another re-iterable of such; a
                function that returns an iterator of them; for a model with one input also an array, or arrays
                in the places of feeds; arrays in the order of the inputs, which labels may follow (a PyTorch
                DataLoader); an ONNX Runtime `CalibrationDataReader`; an `.npy` or `.npz` file or a folder of
                them, one sample each; with a preprocessing a folder of images, or images; Feeds.
            signature: The signature of the model. If its batch size is fixed, samples are put into batches of
                it; those that do not fill one are left out, and `notes` says so.
            preprocessing: How an image becomes an input.
            keep_device_arrays: Leave arrays in device memory where they are.

        Raises:
            FeedsError: The source is of no known form or can be used only once. What is wrong with a sample
                is raised when it is reached.
        """
        if isinstance(source, Feeds):
            if preprocessing is not None:
                raise FeedsError("Those feeds are made already; a preprocessing is for images.")
            if source.signature.inputs == signature.inputs:
                return source
            made = Source(items=lambda: iter(source), what=source.what, count=source._count())
        else:
            made = source_of(source, preprocessing)
        size = fixed_batch(signature)
        notes = source._notes if isinstance(source, Feeds) else {}
        reader = _Reader(made, signature, preprocessing, size, keep_device_arrays)

        def start() -> Iterator[dict[str, np.ndarray]]:
            return reader.feeds() if size is None else regroup(reader.feeds(), size, _noting(notes))

        def rows() -> int | None:
            return _rows_of(made, reader.names)

        def count() -> int | None:
            total = rows() if size is not None else None
            return made.count if size is None else None if total is None else total // size

        return cls(signature, made.what, start, count, rows, notes, made.stacked)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out in the passes so far, in sentences."""
        return tuple(self._notes)

    def first(self) -> dict[str, np.ndarray]:
        """Return the first feed.

        Raises:
            FeedsError: There is none.
        """
        feed = next(iter(self), None)
        if feed is None:
            raise FeedsError("There is no feed.", where=self.what, expected="at least one", found="none")
        return feed

    def take(self, count: int) -> Feeds:
        """Return the same feeds, cut off after `count`."""

        def length() -> int | None:
            known = self._count()
            return None if known is None else min(known, count)

        return self._derived(lambda: itertools.islice(iter(self), count), length)

    def every_other(self) -> Feeds:
        """Return every other feed, beginning with the first."""

        def length() -> int | None:
            known = self._count()
            return None if known is None else (known + 1) // 2

        return self._derived(lambda: itertools.islice(iter(self), 0, None, 2), length)

    def hold_out(self, count: int) -> tuple[Feeds, list[dict[str, np.ndarray]]]:
        """Return the feeds to fit on and at most `count` feeds, evenly spread, to judge by.

        What was fitted on a feed looks closer on it than on others: measured on SqueezeNet, rounding weights
        gained 5 dB on the feeds that it had seen and nothing elsewhere. So the judged feeds are left out of
        those to fit on, unless they are more than a quarter of all: few feeds are too few to fit on, too.
        """
        known = self._count()
        total = sum(1 for _ in self) if known is None else known
        step = max(1, total // count)
        judged = [feed for index, feed in enumerate(self) if index % step == 0][:count]
        if 4 * len(judged) > total:
            return self, judged
        kept = {index * step for index in range(len(judged))}
        return (
            self._derived(
                lambda: (feed for index, feed in enumerate(self) if index not in kept),
                lambda: total - len(judged),
            ),
            judged,
        )

    def batched(self, size: int) -> Feeds:
        """Return the same samples, in order, in feeds of `size` rows each.

        Those at the end that do not fill a feed are left out, and `notes` says so.

        Raises:
            FeedsError: An input has no open batch axis in front, or the size is less than 1.
        """
        if size == fixed_batch(self.signature):
            return self
        if size < 1 or not every_input_is_batched(self.signature):
            raise FeedsError(
                "The samples cannot be put into batches of another size.",
                expected=f"a batch of {fixed_batch(self.signature)}"
                if fixed_batch(self.signature)
                else "a size from 1, and inputs with the batch in front",
                found=f"a batch of {size}, {self.signature.describe().split(' -> ')[0]}",
            )

        def length() -> int | None:
            rows = self._rows()
            return None if rows is None else rows // size

        note = _noting(self._notes)
        return self._derived(lambda: regroup(iter(self), size, note), length)

    def row_by_row(self) -> Feeds:
        """Return the rows of one array, mapping or file as feeds of one row, if the batch is open; else self.

        A list of feeds stays as it is: there somebody has chosen the batch.
        """
        one_by_one = self.stacked and fixed_batch(self.signature) is None
        return self.batched(1) if one_by_one and every_input_is_batched(self.signature) else self

    def fingerprint(self) -> str:
        """Return the SHA-256 of all feeds, 64 hexadecimal digits. Goes through all of them."""
        digest = hashlib.sha256()
        for feed in self:
            update_digest(digest, feed)
        return digest.hexdigest()

    def _derived(
        self, start: Callable[[], Iterator[dict[str, np.ndarray]]], count: Callable[[], int | None]
    ) -> Feeds:
        return Feeds(self.signature, self.what, start, count, lambda: None, self._notes)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._start()

    def __len__(self) -> int:
        """Return how many feeds there are; a TypeError when that is not known without reading them."""
        count = self._count()
        if count is None:
            raise TypeError(f"it is not known how many feeds there are in {self.what}")
        return count

    def __bool__(self) -> bool:
        return True  # what has no known length has a truth value, too

    def __repr__(self) -> str:
        inputs = self.signature.describe().split(" -> ")[0]
        return f"<Feeds {self.what}, for {inputs}>"


@attrs.frozen
class _Reader:
    """Turns the items of a source into checked feeds, with the place of what is wrong."""

    source: Source
    signature: Signature
    preprocessing: Preprocessing | None
    size: int | None
    keep_device_arrays: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.signature.inputs)

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        checked = self.signature if self.size is None else _with_any_batch(self.signature)
        check = InputValidator(checked, device_arrays=self.keep_device_arrays).check
        for index, item in enumerate(self._items()):
            try:
                given = item if self._stays(item) else named_arrays(item, self.names, self.preprocessing)
                found = check(given)
            except (InputError, FeedsError) as error:
                raise _at_sample(error, index, item) from error
            except EdgeInferError:
                raise
            except Exception as error:  # a tensor of another library that gives no array
                raise _at_sample(
                    FeedsError(f"A sample cannot be read: {type(error).__name__}: {error}"), index, item
                ) from error
            # A session takes device arrays as they were given, and views them itself.
            yield dict(given if self._stays(item) else found)

    def _stays(self, item: Any) -> bool:
        return self.keep_device_arrays and isinstance(item, Mapping)

    def _items(self) -> Iterator[Any]:
        """Yield the source's items; a failure of the source itself is wrapped with its place."""
        index = 0
        try:
            for item in self.source.items():
                yield item
                index += 1
        except EdgeInferError:
            raise
        except Exception as error:
            raise FeedsError(
                f"The source of the feeds failed: {type(error).__name__}: {error}",
                where=f"sample {index}",
                facts={"sample": index},
            ) from error


def feed_nbytes(feed: Feed) -> int:
    """Return the size of a feed in bytes."""
    return sum(int(math.prod(array.shape)) * array.dtype.itemsize for array in feed.values())


def update_digest(digest: hashlib._Hash, feed: Feed) -> None:
    """Add a feed to a SHA-256: names, dtypes, shapes and values."""
    for name in sorted(feed):
        array = feed[name]
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())


def _noting(notes: dict[str, None]) -> Callable[[str], None]:
    def note(text: str) -> None:
        notes[text] = None

    return note


def _with_any_batch(signature: Signature) -> Signature:
    inputs = [attrs.evolve(spec, shape=("rows", *(spec.shape or ())[1:])) for spec in signature.inputs]
    return attrs.evolve(signature, inputs=inputs)


def _rows_of(source: Source, names: tuple[str, ...]) -> int | None:
    """Return how many rows there are in all, where the arrays are in memory."""
    total = 0
    for item in source.held or ():
        array = item.get(names[0]) if isinstance(item, Mapping) and names else item
        shape = getattr(array, "shape", None)
        if not shape:
            return None
        total += int(shape[0])
    return total if source.held else None


def _at_sample(error: EdgeInferError, index: int, item: Any) -> FeedsError:
    """Return the same error with the number of the sample, and its file if it has one."""
    parts = [f"sample {index}", str(item) if hasattr(item, "__fspath__") else None, error.where]
    return FeedsError(
        error.what,
        where=", ".join(dict.fromkeys(part for part in parts if part is not None)),
        expected=error.expected,
        found=error.found,
        hint=error.hint,
        facts={**error.facts, "sample": index},
    )
