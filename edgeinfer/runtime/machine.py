"""A line that says on which machine something was measured."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

__all__ = ["describe_machine", "usable_cores"]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def describe_machine() -> str:
    """Return text such as `Intel(R) Xeon(R) …, 2 cores, Linux x86_64, Python 3.11.7`."""
    cores = usable_cores()
    return (
        f"{_processor()}, {cores} core{'s' if cores != 1 else ''}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Model", "Hardware"):  # x86; Arm boards
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
