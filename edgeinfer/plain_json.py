"""`parse_json`: JSON from anyone, refused where it is nested more deeply than anything of ours is."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["MAX_DEPTH", "parse_json"]

# What is written needs far less: a recipe with loops within loops has about six levels for each of them. What
# goes through a tree by recursion afterwards may take three calls a level, and Python allows a thousand.
MAX_DEPTH = 200


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, or nested in more than `MAX_DEPTH` levels. How deep `json.loads` goes by
            itself differs by the version of Python, and by how deep its caller is.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return value
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
    if level:
        raise ValueError(f"it is nested in more than {MAX_DEPTH} levels")
    return value
