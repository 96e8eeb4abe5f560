"""Feeds made up from a signature, for measuring without data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import InputError

__all__ = [
    "Feed",
    "FeedIterable",
    "Feeds",
    "Shapes",
    "as_feeds",
    "feed_nbytes",
    "generate_feeds",
    "resolve_shapes",
]

Feed: TypeAlias = "Mapping[str, np.ndarray]"
Feeds: TypeAlias = "Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray]]"
FeedIterable: TypeAlias = "Iterable[Mapping[str, np.ndarray]]"
# By input name (`{"input": (1, 3, 224, 224)}`), by symbolic dimension (`{"N": 8}`), or both.
Shapes: TypeAlias = "Mapping[str, int | Sequence[int]]"


def resolve_shapes(signature: Signature, shapes: Shapes | None = None) -> dict[str, tuple[int, ...]]:
    """Give every input a static shape.

    Args:
        signature: The inputs.
        shapes: Sizes of symbolic dimensions by their name, or whole shapes by input name. What is not
            given is 1.

    Raises:
        InputError: A name is neither an input nor a symbolic dimension, or a shape does not fit.
    """
    given = dict(shapes or {})
    names = {spec.name for spec in signature.inputs}
    unknown = [name for name in given if name not in names and name not in signature.symbols]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is neither an input nor a symbolic dimension.",
            where="shapes",
            expected=f"{', '.join(sorted(names))}; {', '.join(signature.symbols) or 'no dimensions'}",
        )
    sizes = {name: int(value) for name, value in given.items() if isinstance(value, (int, np.integer))}
    resolved = {}
    for spec in signature.inputs:
        whole = given.get(spec.name)
        if isinstance(whole, Sequence):
            resolved[spec.name] = _fitting(spec, tuple(int(size) for size in whole), sizes)
        else:
            resolved[spec.name] = tuple(
                dim if isinstance(dim, int) else sizes.get(dim or "", 1) for dim in spec.shape or ()
            )
    return resolved


def _fitting(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> tuple[int, ...]:
    fits = spec.shape is None or (
        len(shape) == len(spec.shape)
        and all(
            dim == size if isinstance(dim, int) else sizes.setdefault(dim or "?", size) == size or dim is None
            for dim, size in zip(spec.shape, shape, strict=True)
        )
    )
    if not fits:
        raise InputError(
            "The shape given does not fit the input.",
            where=f"input {spec.name!r}",
            expected=spec.describe(),
            found=str(shape),
        )
    return shape


def generate_feeds(
    signature: Signature, count: int = 1, *, shapes: Shapes | None = None, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Return `count` feeds of pseudo-random values.

    Floats are standard normal. Integers and booleans are 0 or 1, which are valid token ids, masks and
    indices in nearly every model.

    Args:
        signature: The inputs.
        count: How many feeds.
        shapes: As for `resolve_shapes`.
        seed: Of the generator; the same seed gives the same feeds.

    Raises:
        InputError: A shape does not fit, or an input has a dtype that cannot be made up.
    """
    resolved = resolve_shapes(signature, shapes)
    rng = np.random.default_rng(seed)
    return [
        {spec.name: _values(spec, resolved[spec.name], rng) for spec in signature.inputs}
        for _ in range(count)
    ]


def _values(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = spec.dtype.kind
    if kind in "iub":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if kind in "fV":  # V: the float types of ml_dtypes
        return rng.standard_normal(shape, np.float32).astype(spec.dtype)
    raise InputError(
        "Values for this input cannot be made up.",
        where=f"input {spec.name!r}",
        found=spec.describe(),
        hint="Pass feeds of your own.",
    )


@final
@attrs.frozen
class _Unnamed:
    """Feeds given as bare arrays, for a model with one input."""

    name: str
    items: Iterable[Any]

    def __iter__(self) -> Iterator[Feed]:
        return (item if isinstance(item, Mapping) else {self.name: item} for item in self.items)


def as_feeds(feeds: Any, signature: Signature) -> Iterable[Feed]:
    """Return something that can be gone through more than once: one feed, many feeds, or a source of them.

    Args:
        feeds: One mapping, one array (for one input), or an iterable of either. A one-shot iterator is
            read into memory; give a re-iterable to keep memory flat.
        signature: The inputs.

    Raises:
        InputError: It is none of these, or there is no feed at all.
    """
    first = signature.inputs[0].name if len(signature.inputs) == 1 else ""
    if isinstance(feeds, Mapping):
        return [feeds]
    if isinstance(feeds, np.ndarray) and first:
        return [{first: feeds}]
    if not isinstance(feeds, Iterable):
        raise InputError(
            "Those are no feeds.",
            expected="a mapping from input name to array, or an iterable of such",
            found=feeds,
        )
    items = list(feeds) if isinstance(feeds, Iterator) else feeds
    if isinstance(items, Sequence) and not items:
        raise InputError("There is no feed.", expected="at least one")
    return _Unnamed(first, items) if first else items


def feed_nbytes(feed: Feed) -> int:
    """Return the size of a feed in bytes."""
    return sum(array.nbytes for array in feed.values())
