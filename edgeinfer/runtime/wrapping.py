"""Turning what a backend raises into an error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgeinfer.errors import EdgeInferError

__all__ = ["wrapping"]


@contextlib.contextmanager
def wrapping(cls: type[EdgeInferError], what: str) -> Iterator[None]:
    """Raise foreign exceptions as `cls`; `what` says what could not be done."""
    try:
        yield
    except (EdgeInferError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise cls(f"{what}: {type(error).__name__}: {str(error).strip()}") from error
