"""One table, shown as text or as HTML in a notebook; and progress. `terminal` has both for rich.

Reports build a `Table` of plain values. Nothing here knows what the table is about.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, final

import attrs

from edgeinfer.values import as_tuple

__all__ = ["Steps", "Table", "in_notebook", "show_progress_with", "shows_progress", "track"]

T = TypeVar("T")

_log = logging.getLogger("edgeinfer")

_BLOCK = "margin:0.5em 0"
# Inline styles, because notebooks strip style sheets; grey that shows on light and on dark themes.
_CELL = (
    "text-align:left;vertical-align:top;padding:0.2em 1.5em 0.2em 0;max-width:60em;overflow-wrap:break-word"
)
_HEAD = f"{_CELL};border-bottom:1px solid rgba(128,128,128,0.5)"
_LABEL = f"{_CELL};opacity:0.7;white-space:nowrap"
_FOOTER = "opacity:0.7;font-size:90%"


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
        styles = [_CELL] * len(self.columns)
        if not any(self.columns):
            styles[0] = _LABEL
        head = "".join(f"<th style='{_HEAD}'>{_escaped(column)}</th>" for column in self.columns)
        body = "".join(
            f"<tr>{''.join(_html_cell(*pair) for pair in zip(row, styles, strict=True))}</tr>"
            for row in self.rows
        )
        caption = f"<div><strong>{_escaped(self.title)}</strong></div>" if self.title else ""
        header = f"<thead><tr>{head}</tr></thead>" if any(self.columns) else ""
        table = (
            f"<table style='border-collapse:collapse'>{header}<tbody>{body}</tbody></table>"
            if self.rows
            else ""
        )
        footer = f"<div style='{_FOOTER}'>{_escaped(self.footer)}</div>" if self.footer else ""
        return f"<div style='{_BLOCK}'>{caption}{table}{footer}</div>"

    def __str__(self) -> str:
        cells = [self.columns, *(tuple(str(c) for c in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        shown = lines if any(self.columns) else lines[1:]
        return "\n".join(line for line in (self.title, *shown, self.footer) if line)

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
    if not shows_progress(progress):
        yield from items
        return
    if _bar is not None:
        yield from _bar(items, description, total)
        return
    # What runs on a device has no rich: it says what it does, and is done.
    sys.stderr.write(f"{description} ...\n")
    yield from items


@final
class Steps:
    """The steps of something long, with what is left: on stderr, and to the logger `edgeinfer` at INFO.

    A context manager. In a terminal each step's line takes the place of the one before.

    Args:
        what: What is being done.
        total: How many steps there are, at most.
        progress: As for `track`.
    """

    def __init__(self, what: str, total: int, *, progress: bool | None = None) -> None:
        self._what, self._total = what, total
        self._shown = shows_progress(progress)
        self._done = 0
        self._started = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Say which step begins now."""
        left = ""
        if self._done:
            taken = time.perf_counter() - self._started
            rest = taken / self._done * (self._total - self._done)
            left = f" ({taken:.0f} s so far, about {rest:.0f} s left)"
        self._done = min(self._done + 1, self._total)
        self._say(f"{self._what}, step {self._done} of {self._total}: {name}{left}")

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._say(f"{self._what}: done in {time.perf_counter() - self._started:.0f} s")
        if self._shown and sys.stderr.isatty():
            sys.stderr.write("\n")

    def _say(self, line: str) -> None:
        _log.info("%s", line)
        if self._shown:
            sys.stderr.write(f"\r\x1b[2K{line}" if sys.stderr.isatty() else f"{line}\n")
            sys.stderr.flush()


Bar: TypeAlias = "Callable[[Iterable[Any], str, int | None], Iterator[Any]]"
_bar: Bar | None = None


def show_progress_with(bar: Bar) -> None:
    """Let `bar(items, description, total)` show progress from now on; `terminal` does so when imported."""
    global _bar  # one process has one terminal
    _bar = bar


def shows_progress(progress: bool | None) -> bool:
    """Whether to show progress: as asked for, and for None in a terminal or a notebook only."""
    return sys.stderr.isatty() or in_notebook() if progress is None else progress


def _html_cell(value: object, style: str) -> str:
    return f"<td style='{style}'>{_escaped(str(value))}</td>"


def _escaped(text: str) -> str:
    from html import escape  # with its table of all named characters it is slow to import

    return escape(text).replace("\n", "<br>")


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
