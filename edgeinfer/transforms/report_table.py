"""Reports from the top: entries that say the same of different nodes are one line with a count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Group", "group_entries", "places"]

# How many names a group shows.
SHOWN_NAMES = 3
# Words that name something or count something: quoted ones, and those with a digit, a slash, a dot or an
# underscore inside.
_PARTICULAR = re.compile(r"'[^']*'|[^\s;,()]*[\d/_.][^\s;,()]*[^\s;,():.]|\d")
_ANY = "…"


class Group(NamedTuple):
    """Entries of one kind: how many, what they say, and of which nodes."""

    number: int
    text: str
    nodes: tuple[str, ...]

    def where(self) -> str:
        """Return the first names, and how many more there are."""
        names = [name for name in self.nodes if name]
        shown = ", ".join(names[:SHOWN_NAMES])
        return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def group_entries(entries: Iterable[tuple[str, str]]) -> tuple[Group, ...]:
    """Return the entries, (node, text) each, by what they say; the largest groups first."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for node, text in entries:
        groups.setdefault(_PARTICULAR.sub(_ANY, text.replace(node, _ANY) if node else text), []).append(
            (node, text)
        )
    found = [
        Group(len(members), _common([text for _, text in members], key), tuple(node for node, _ in members))
        for key, members in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: -group.number))


def places(count: int, verb: str) -> str:
    """Return text such as `3 places changed`."""
    return f"{count} place{'' if count == 1 else 's'} {verb}"


def _common(texts: Sequence[str], key: str) -> str:
    """Return the text of a group, with what differs within it left open."""
    words = [text.split(" ") for text in texts]
    if len({len(each) for each in words}) > 1:
        return key
    return " ".join(column[0] if len(set(column)) == 1 else _ANY for column in zip(*words, strict=True))
