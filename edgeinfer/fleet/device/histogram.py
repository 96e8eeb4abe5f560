"""`Histogram`: a distribution of bounded size that merges exactly, of a stated relative error.

Buckets are powers of g = (1 + e)/(1 - e), with e the relative error: a value x is in bucket ceil(log_g |x|),
and the middle of a bucket is at most e|x| away from every value of it (Masson, Rim, Lee: DDSketch, VLDB
2019). Counts are exact, so merging is addition and the order does not matter.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from edgeinfer.errors import FleetError

__all__ = ["Histogram"]

_LEAST, _MOST = 1e-9, 1e12  # of magnitudes; what is smaller counts as zero, what is larger as the largest


@final
class Histogram:
    """Counts of values in logarithmic buckets.

    Not for several threads at once.

    Args:
        relative_error: How far a quantile may be from the exact one, relative to it: 0.001 to 0.2.
    """

    def __init__(self, values: Iterable[float] = (), *, relative_error: float = 0.01) -> None:
        if not 0.001 <= relative_error <= 0.2:
            raise FleetError(
                "The relative error of a histogram is out of range.",
                expected="0.001 to 0.2",
                found=relative_error,
            )
        self._error = float(relative_error)
        self._log_growth = math.log((1 + self._error) / (1 - self._error))
        # Counter would be slower to make, and a report has some of these.
        self._positive: defaultdict[int, int] = defaultdict(int)
        self._negative: defaultdict[int, int] = defaultdict(int)
        self._zero = 0
        self._sum = 0.0
        self._min, self._max = math.inf, -math.inf
        for value in values:
            self.add(value)

    @property
    def relative_error(self) -> float:
        """How far a quantile may be from the exact one, relative to it."""
        return self._error

    @property
    def count(self) -> int:
        """How many values were added."""
        return sum(self._positive.values()) + sum(self._negative.values()) + self._zero

    @property
    def sum(self) -> float:
        """The sum of the values."""
        return self._sum

    @property
    def mean(self) -> float | None:
        """The mean, or None of no values."""
        return self._sum / self.count if self.count else None

    def add(self, value: float, count: int = 1) -> None:
        """Count a value.

        Raises:
            FleetError: It is not a finite number, or the count is negative.
        """
        value = float(value)
        if not math.isfinite(value) or count < 0:
            raise FleetError("That cannot be counted.", expected="a finite number", found=(value, count))
        if count == 0:
            return
        if abs(value) < _LEAST:
            self._zero += count
        else:
            (self._positive if value > 0 else self._negative)[self._bucket(abs(value))] += count
        self._sum += value * count
        self._min, self._max = min(self._min, value), max(self._max, value)

    def merge(self, other: Histogram) -> None:
        """Add all that another histogram counted.

        Raises:
            FleetError: It has another relative error.
        """
        if other._error != self._error:
            raise FleetError(
                "Histograms of unlike errors cannot be merged.", expected=self._error, found=other._error
            )
        for own, added in ((self._positive, other._positive), (self._negative, other._negative)):
            for index, count in added.items():
                own[index] += count
        self._zero += other._zero
        self._sum += other._sum
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)

    def quantile(self, q: float) -> float | None:
        """Return the value below which the share `q` (0 to 1) of the values lies; None of no values.

        It is within the relative error of the exact value at rank ⌊q·(count - 1)⌋.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return several quantiles in one pass. See `quantile`."""
        for share in shares:
            if not 0 <= share <= 1:
                raise FleetError("That is no quantile.", expected="0 to 1", found=share)
        count = self.count
        if not count:
            return [None] * len(shares)
        buckets = self._ascending()
        seen = list(itertools.accumulate([of_bucket for _, _, of_bucket in buckets]))
        found: list[float | None] = []
        for share in shares:
            sign, index, _ = buckets[bisect.bisect_right(seen, share * (count - 1))]
            found.append(min(max(sign * self._middle(index), self._min), self._max))
        return found

    def count_above(self, limit: float) -> int:
        """Return how many values are above a limit; those within the relative error of it are not counted."""
        if self._max <= limit:
            return 0
        floor = limit + self._error * abs(limit)
        return sum(count for sign, index, count in self._ascending() if sign * self._middle(index) > floor)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values; of the same values always the same."""
        if not self.count:
            return {"relative_error": self._error}
        found: dict[str, Any] = {
            "relative_error": self._error,
            "sum": self._sum,
            "min": self._min,
            "max": self._max,
        }
        if self._zero:
            found["zero"] = self._zero
        for name, buckets in (("positive", self._positive), ("negative", self._negative)):
            if buckets:
                found[name] = {str(index): buckets[index] for index in sorted(buckets)}
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Histogram:
        """Read what `to_dict` wrote.

        Raises:
            FleetError: It is no histogram.
        """
        try:
            return cls._decoded(values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FleetError(
                "That is no histogram.",
                expected="what Histogram.to_dict wrote",
                found=f"{type(error).__name__}: {error}",
            ) from error

    @classmethod
    def _decoded(cls, values: Mapping[str, Any]) -> Histogram:
        found = cls(relative_error=float(values["relative_error"]))
        last = found._bucket(_MOST)
        for name, buckets in (("positive", found._positive), ("negative", found._negative)):
            given = values.get(name)
            if given is None:
                continue
            counts = given.values()
            buckets.update(zip(map(int, given), counts, strict=True))
            if not set(map(type, counts)) <= {int} or min(counts, default=1) <= 0:
                raise ValueError(f"a count is no positive number: {counts}")
            if max(buckets, default=0) > last + 1 or min(buckets, default=0) < -last - 1:
                raise ValueError(f"there are no such buckets: {buckets.keys()}")
        found._zero = values.get("zero", 0)
        if type(found._zero) is not int or found._zero < 0:
            raise ValueError(f"{found._zero!r} zeros")
        if found.count:
            found._sum, found._min, found._max = (float(values[name]) for name in ("sum", "min", "max"))
            if not (math.isfinite(found._sum) and -math.inf < found._min <= found._max < math.inf):
                raise ValueError("the sum, the least or the greatest value is no number")
        return found

    def _bucket(self, magnitude: float) -> int:
        return math.ceil(math.log(min(magnitude, _MOST)) / self._log_growth)

    def _middle(self, bucket: int) -> float:
        # 2 g^i / (g + 1): as far, relatively, from both ends of the bucket.
        return 2 * math.exp(bucket * self._log_growth) / (math.exp(self._log_growth) + 1)

    def _ascending(self) -> list[tuple[int, int, int]]:
        """Return sign, bucket and count, the least values first; what counts as zero has the sign 0."""
        return [
            *((-1, index, self._negative[index]) for index in sorted(self._negative, reverse=True)),
            *([(0, 0, self._zero)] if self._zero else ()),
            *[(1, index, count) for index, count in sorted(self._positive.items())],
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        p50, p99 = self.quantile(0.5), self.quantile(0.99)
        return f"Histogram(count={self.count}, p50={p50}, p99={p99})"
