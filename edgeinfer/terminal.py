"""Tables and progress by rich, for terminals and notebooks. A device in the field does without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import box
from rich.console import Console, Group
from rich.progress import track as rich_track
from rich.table import Table as RichTable
from rich.text import Text

from edgeinfer.display import Table, in_notebook, show_progress_with

__all__ = ["to_rich"]

T = TypeVar("T")


def to_rich(table: Table) -> Group:
    """Return something that `rich` prints: the title, a table, the footer."""
    # Title and footer stand apart: rich would fold them to the width of the table.
    parts: list[Text | RichTable] = [Text(table.title, style="bold")] if table.title else []
    if table.rows:
        labelled = any(table.columns)
        shown = RichTable(box=box.SIMPLE_HEAD, show_header=labelled, show_edge=False, pad_edge=False)
        for number, column in enumerate(table.columns):
            shown.add_column(column, overflow="fold", style="cyan" if number == 0 else "")
        for row in table.rows:
            shown.add_row(*(Text(str(cell)) for cell in row))
        parts.append(shown)
    if table.footer:
        parts.append(Text(table.footer, style="dim"))
    return Group(*parts)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    console = Console(stderr=not in_notebook())
    yield from rich_track(items, description, total=total, console=console, transient=True)


show_progress_with(_bar)
