"""Inputs of a model, read from the many forms that people have them in."""

from __future__ import annotations

from edgeinfer.feeds.feeds import Feeds
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.feeds.preprocessing import Preprocessing
from edgeinfer.feeds.shapes import InputShape

__all__ = ["Feeds", "InputShape", "Preprocessing", "generate_feeds"]
