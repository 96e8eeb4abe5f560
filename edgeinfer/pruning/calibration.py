"""What the pruning transforms take as calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, final

import attrs
import numpy as np

from edgeinfer.errors import CalibrationError

__all__ = ["Feeds", "as_feeds", "count_samples"]

Feeds: TypeAlias = "Iterable[Mapping[str, np.ndarray]]"


@final
@attrs.frozen
class _Checked:
    """Feeds that can be gone through again and again."""

    source: Any

    def __iter__(self) -> Any:
        return iter(self.source)


def as_feeds(calibration: object) -> Feeds:
    """Return re-iterable feeds.

    Raises:
        CalibrationError: It is an iterator, which is used up after one pass, or not iterable, or empty.
    """
    if not isinstance(calibration, Iterable) or isinstance(calibration, (str, bytes, Mapping)):
        raise CalibrationError(
            "That is not calibration data.",
            expected="a re-iterable of feeds: mappings from input name to array, batch axis included",
            found=type(calibration).__name__,
        )
    if iter(calibration) is calibration:
        raise CalibrationError(
            "The calibration can be gone through only once.",
            found=type(calibration).__name__,
            hint="Pass a list, or an object whose __iter__ starts anew.",
        )
    first = next(iter(calibration), None)
    if not isinstance(first, Mapping):
        raise CalibrationError(
            "The calibration is empty." if first is None else "A feed must be a mapping.",
            expected="mappings from input name to array",
            found="nothing" if first is None else type(first).__name__,
        )
    return _Checked(calibration)


def count_samples(feeds: Feeds) -> int:
    """Return how many samples the feeds hold in all."""
    return sum(next(iter(feed.values())).shape[0] if feed else 0 for feed in feeds)
