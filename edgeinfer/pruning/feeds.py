"""Feeds: what a model is run on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

__all__ = ["Feeds"]

Feeds: TypeAlias = "Iterable[Mapping[str, np.ndarray]]"
