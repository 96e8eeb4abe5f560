"""One table, shown as HTML in a notebook and by rich in a terminal; and progress.

Reports build a `Table` of plain values. Nothing here knows what the table is about.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, final

import attrs

from edgeinfer.values import as_tuple

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Table", "track"]

T = TypeVar("T")


def _as_rows(rows: Iterable[Iterable[object]]) -> tuple[tuple[object, ...], ...]:
    return tuple(tuple(row) for row in rows)


@final
@attrs.frozen(kw_only=True)
class Table:
    """A titled table of text cells.

    Attributes:
        title: Shown above it.
        columns: The column headings.
        rows: The cells, row by row; each as long as `columns`. Numbers are formatted by the maker.
        footer: A line below it, such as a warning.
    """

    title: str = ""
    columns: tuple[str, ...] = attrs.field(converter=as_tuple)
    rows: tuple[tuple[object, ...], ...] = attrs.field(converter=_as_rows)
    footer: str = ""

    def to_html(self) -> str:
        """Return an HTML fragment; every cell is escaped."""
        head = "".join(f"<th style='text-align:left'>{html.escape(c)}</th>" for c in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(c))}</td>" for c in row) + "</tr>"
            for row in self.rows
        )
        caption = f"<strong>{html.escape(self.title)}</strong>" if self.title else ""
        footer = f"<div>{html.escape(self.footer)}</div>" if self.footer else ""
        return (
            f"<div>{caption}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{footer}</div>"
        )

    def to_rich(self) -> RichTable:
        """Return a `rich.table.Table`."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.title or None,
            title_justify="left",
            caption=self.footer or None,
            caption_justify="left",
        )
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        return table

    def __str__(self) -> str:
        cells = [self.columns, *(tuple(str(c) for c in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join(line for line in (self.title, *lines, self.footer) if line)

    def _repr_html_(self) -> str:
        return self.to_html()


def track(
    items: Iterable[T], description: str, *, total: int | None = None, progress: bool | None = None
) -> Iterator[T]:
    """Yield `items` behind a progress bar.

    Args:
        items: What to go through.
        description: What is being done.
        total: How many there are, when `items` has no length.
        progress: Show it. None: in a terminal or a notebook only.
    """
    if progress is None:
        progress = sys.stderr.isatty() or _in_notebook()
    if not progress:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=not _in_notebook())
    yield from rich_track(items, description, total=total, console=console, transient=True)


def _in_notebook() -> bool:
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
