"""What all commands share: printing, `--json` and `--option`."""

from __future__ import annotations

import argparse
import ast
import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from edgeinfer.display import Table

__all__ = [
    "Commands",
    "Report",
    "add_json",
    "add_options",
    "option_values",
    "print_json",
    "print_line",
    "print_report",
    "print_table",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
# Piped output has no width of its own; rich would take 80 columns and fold the tables.
_PIPE_WIDTH = 140


class Report(Protocol):
    """What the library's functions return."""

    def table(self) -> Table:
        """Return what a person wants to see."""
        ...

    def to_dict(self) -> dict[str, object]:
        """Return what a program wants to see."""
        ...


def print_table(*tables: Table) -> None:
    """Print tables to stdout: with rich, or plainly on a device that has none."""
    try:
        from rich.console import Console

        from edgeinfer.terminal import to_rich
    except ImportError:
        print("\n\n".join(str(table) for table in tables))
        return
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for number, table in enumerate(tables):
        if number:
            console.print()
        console.print(to_rich(table))


def print_json(value: object) -> None:
    """Print one JSON document to stdout. Infinite and undefined numbers become null."""
    print(json.dumps(_jsonable(value), indent=2, default=str))


def print_line(text: str) -> None:
    """Print one line to stdout."""
    print(text)


def print_report(report: Report, arguments: argparse.Namespace) -> None:
    """Print a report as a table, or as JSON with `--json`."""
    if arguments.json:
        print_json(report.to_dict())
    else:
        print_table(report.table())


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--option`."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of the backend, such as threads=1; may be repeated",
    )


def option_values(arguments: argparse.Namespace) -> dict[str, object] | None:
    """Return what `--option` gave."""
    return dict(arguments.option) or None


def _option(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
