"""`Desired`: a document of assignments as it came from somewhere."""

from __future__ import annotations

from typing import final

import attrs

__all__ = ["Desired"]


@final
@attrs.frozen(kw_only=True)
class Desired:
    """The signed assignments of a device, as some location has them.

    Attributes:
        data: The document, not verified.
        etag: What to ask with next, so that the same is not sent again.
    """

    data: bytes
    etag: str
