"""Facts that every artifact bound to a kind of machine needs."""

from __future__ import annotations

import platform

__all__ = ["machine_facts"]


def machine_facts() -> dict[str, str]:
    """Return the facts that every artifact bound to this kind of machine needs: system and architecture."""
    return {"system": platform.system(), "machine": platform.machine()}
