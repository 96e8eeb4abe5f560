"""Converters for the fields of frozen values, typed so that static checkers accept any iterable."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["as_frozenset", "as_tuple"]


def as_tuple(items: Iterable[Any]) -> tuple[Any, ...]:
    """Return the items as a tuple; a text is one item."""
    return (items,) if isinstance(items, str) else tuple(items)


def as_frozenset(items: Iterable[Any]) -> frozenset[Any]:
    """Return the items as a frozen set; a text is one item."""
    return frozenset((items,) if isinstance(items, str) else items)
