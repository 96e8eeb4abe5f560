"""The feeds of a measurement: the caller's or made up, and where their shapes are from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.errors import InputError
from edgeinfer.feeds.batch import batch_axis
from edgeinfer.feeds.feeds import Feeds, feed_nbytes
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.feeds.shapes import (
    DECLARED,
    FROM_FEEDS,
    InputShape,
    Shapes,
    checked_shapes,
    dims_of,
    input_shapes,
)
from edgeinfer.values import as_tuple

__all__ = ["ChosenFeeds", "choose_feeds", "shapes_of_feeds"]

# Feeds of a measurement are held in memory, so that reading them is not measured.
_MAX_BYTES = 256 << 20


@final
@attrs.frozen(kw_only=True, eq=False)
class ChosenFeeds:
    """The feeds that something is measured on.

    Attributes:
        feeds: The feeds, in memory.
        inputs: The shapes of the first of them.
        notes: What must be said about them.
    """

    feeds: tuple[dict[str, np.ndarray], ...] = attrs.field(converter=as_tuple)
    inputs: tuple[InputShape, ...] = attrs.field(converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(converter=as_tuple)


def choose_feeds(
    feeds: Any,
    signature: Signature,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    count: int = 1,
    seed: int = 0,
    keep_device_arrays: bool = False,
) -> ChosenFeeds:
    """Return what a caller gave, or made-up feeds.

    Args:
        feeds: As for `Feeds.of`. None: made up.
        signature: The inputs.
        shapes: Sizes of symbolic dimensions or entire shapes, for made-up feeds; others must have them.
        batch: The size of the batch: the rows of the feeds are put into batches of it.
        count: How many feeds to make up, and the most that are taken. 0: as many as fit into 256 MB.
        seed: For made-up feeds.
        keep_device_arrays: Leave arrays in device memory where they are.

    Raises:
        InputError: A shape is missing or does not fit, or the feeds do not.
        FeedsError: There is no feed.
    """
    if feeds is None:
        made = generate_feeds(signature, count or 1, shapes=shapes, batch=batch, seed=seed)
        return ChosenFeeds(
            feeds=made, inputs=input_shapes(signature, shapes, batch=batch), notes=["made-up inputs"]
        )
    source = Feeds.of(feeds, signature, keep_device_arrays=keep_device_arrays)
    size = _batch(signature, shapes or {}, batch)
    if size is not None:
        source = source.batched(size)
    kept, notes = _kept(source, count)
    check_feed(signature, kept[0], shapes or {})
    inputs, more = shapes_of_feeds(signature, kept)
    if len(kept) > 1:
        notes.append(f"{len(kept)} feeds in turn")
    return ChosenFeeds(feeds=kept, inputs=inputs, notes=[*source.notes, *notes, *more])


def _kept(source: Feeds, count: int) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    kept = [source.first()]
    size = feed_nbytes(kept[0])
    rest: Iterator[dict[str, np.ndarray]] = iter(source if count != 1 else ())
    next(rest, None)
    for feed in rest:
        size += feed_nbytes(feed)
        if size > _MAX_BYTES or len(kept) == count:
            return kept, [f"the first {len(kept)} feeds only"]
        kept.append(feed)
    return kept, []


def _batch(signature: Signature, shapes: Shapes, batch: int | None) -> int | None:
    given = given_batch(signature, shapes)
    if batch is not None and given is not None and batch != given:
        raise InputError("Two sizes of the batch were given.", found=f"batch={batch}, shapes={dict(shapes)}")
    return given if batch is None else batch


def given_batch(signature: Signature, shapes: Shapes) -> int | None:
    """Return the size of the batch among the shapes that were given, if it is there and comes first."""
    given = checked_shapes(signature, shapes)
    for spec in signature.inputs:
        if batch_axis(spec, signature) == 0:
            size = given.get(spec.name)
            size = size[0] if isinstance(size, tuple) else given.get(str((spec.shape or ())[0]))
            if isinstance(size, int):
                return size
    return None


def check_feed(signature: Signature, feed: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse a feed that has other shapes than were asked for.

    Raises:
        InputError: It has.
    """
    given = checked_shapes(signature, shapes)
    for spec in signature.inputs:
        shape = tuple(feed[spec.name].shape)
        wanted = given.get(spec.name)
        if not isinstance(wanted, tuple):
            wanted = tuple(
                given.get(dim, size) if isinstance(dim, str) else size
                for dim, size in zip(dims_of(spec, len(shape)), shape, strict=True)
            )
        if wanted != shape:
            raise InputError(
                "The feeds have another shape than was asked for.",
                where=f"input {spec.name!r}",
                expected=str(wanted),
                found=str(shape),
            )


def shapes_of_feeds(
    signature: Signature, feeds: Sequence[Mapping[str, Any]]
) -> tuple[tuple[InputShape, ...], tuple[str, ...]]:
    """Return the shapes of the first of some feeds, and a note when others have other shapes."""
    first = feeds[0]
    found = tuple(
        InputShape(
            name=spec.name,
            dtype=str(spec.dtype),
            shape=tuple(first[spec.name].shape),
            dims=dims_of(spec, len(first[spec.name].shape)),
            origins=[
                DECLARED if isinstance(dim, int) else FROM_FEEDS
                for dim in dims_of(spec, len(first[spec.name].shape))
            ],
        )
        for spec in signature.inputs
        if spec.name in first
    )
    counts = Counter(tuple((name, tuple(array.shape)) for name, array in feed.items()) for feed in feeds)
    if len(counts) == 1:
        return found, ()
    texts = [
        f"{count} of {', '.join(f'{name} {shape}' for name, shape in shapes)}"
        for shapes, count in counts.most_common(4)
    ]
    more = "; …" if len(counts) > 4 else ""
    return found, (f"the feeds have {len(counts)} shapes: {'; '.join(texts)}{more}",)
