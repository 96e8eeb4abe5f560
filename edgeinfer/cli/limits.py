"""The limits of a Budget as options, the same for all commands that take one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeinfer.cli.inputs import number
from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from edgeinfer.budget import Budget

__all__ = ["add_budget", "budget_of"]

# By the Budget's name of each limit: its options, how its value is read, what it is.
_LIMITS: dict[str, tuple[tuple[str, ...], Callable[[str], Any], str]] = {
    "latency_p50_ms": (("--latency-p50-ms", "--p50-ms"), number(above=0), "median latency in ms"),
    "latency_p99_ms": (("--latency-p99-ms", "--p99-ms"), number(above=0), "99th percentile of it in ms"),
    "peak_bytes": (("--memory", "--peak"), str, "peak memory, such as 120MiB"),
    "disk_bytes": (("--disk",), str, "size on disk, such as 10MB"),
    "power_w": (("--power-w",), number(above=0), "power in W"),
    "temperature_c": (("--temperature-c",), number(), "temperature in °C"),
    "max_drop": (("--max-drop",), number(), "how much of the metric may be lost"),
    "min_sqnr_db": (("--min-sqnr-db",), number(), "least closeness of the outputs to the original, in dB"),
}


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add one option for each limit of a Budget."""
    group = parser.add_argument_group("limits")
    for limit, (options, kind, what) in _LIMITS.items():
        metavar = "MIN" if limit.startswith("min") else "MAX"
        group.add_argument(*options, dest=limit, type=kind, metavar=metavar, help=what)


def budget_of(arguments: argparse.Namespace) -> Budget:
    """Return the budget that the options give.

    Raises:
        OptionsError: A limit is refused, or there is none.
    """
    from edgeinfer.budget import Budget

    limits = {name: getattr(arguments, name) for name in _LIMITS if getattr(arguments, name) is not None}
    if not limits:
        options = ", ".join(options[0] for options, _, _ in _LIMITS.values())
        raise OptionsError("There is no limit.", expected=f"at least one of {options}")
    return Budget.from_dict(limits)
