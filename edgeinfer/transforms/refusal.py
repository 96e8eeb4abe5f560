"""`Refusal`: why a transform leaves a place alone. The one type for it, inside and in reports."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Refusal"]


class Refusal(NamedTuple):
    """A node, tensor or group that stays as it is; `report.skip(*refusal)` says so.

    Attributes:
        node: Its name.
        reason: Why, as the end of a sentence that begins with the name.
    """

    node: str
    reason: str
