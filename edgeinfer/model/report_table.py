"""Reports from the top: entries that say the same of different nodes are one line with a count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["COLUMNS", "Group", "Row", "group_entries", "places", "report_rows", "short_lines"]

# How many names a group shows, and how many lines a report as text.
SHOWN_NAMES, SHOWN_ROWS = 3, 12
# Words that name something or count something: quoted ones, and those with a digit, a slash, a dot or an
# underscore inside.
_PARTICULAR = re.compile(r"'[^']*'|[^\s;,()]*[\d/_.][^\s;,()]*(?<![:.])")
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


class Row(NamedTuple):
    """One row of a report's table, as text."""

    transform: str
    kind: str
    places: str
    what: str
    nodes: str


# The headings of a table of rows.
COLUMNS = ("transform", "", "places", "what", "nodes")


def report_rows(
    name: str,
    applied: Iterable[tuple[str, str]],
    skipped: Iterable[tuple[str, str]],
    notes: Iterable[str],
    *,
    details: bool,
) -> list[Row]:
    """Return what a transform did, what it left alone and its notes: one row a place, or one a group."""
    rows = []
    for kind, entries in (("applied", applied), ("skipped", skipped)):
        if details:
            rows += [Row(name, kind, "1", text, node) for node, text in entries]
        else:
            groups = group_entries(entries)
            rows += [Row(name, kind, str(group.number), group.text, group.where()) for group in groups]
    return rows + [Row(name, "note", "", note, "") for note in notes]


def short_lines(rows: Sequence[Row]) -> list[str]:
    """Return the first rows as indented lines, and how many more there are."""
    lines = []
    for row in rows[:SHOWN_ROWS]:
        count = f"{row.places} x " if row.places not in ("", "1") else ""
        lines.append(f"  {row.kind} {count}{row.what}{f': {row.nodes}' if row.nodes else ''}")
    more = len(rows) - SHOWN_ROWS
    return [*lines, f"  ... and {more} more lines in table()"] if more > 0 else lines


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
