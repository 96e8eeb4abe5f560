"""Small nets for tests of estimates."""

from __future__ import annotations

import numpy as np

from edgeinfer.estimate.net_builder import NetBuilder
from edgeinfer.model.model import Model


def convolutions(channels: int = 64) -> Model:
    b = NetBuilder(np.random.default_rng(0))
    x = b.act(b.conv(b.input(1, 3, 32, 32), channels, 3), "relu")
    x = b.act(b.conv(x, channels, 3), "relu")
    return b.finish(b.conv(x, 8, 1))


def separable(channels: int = 16) -> Model:
    b = NetBuilder(np.random.default_rng(0))
    x = b.act(b.conv(b.input(1, 3, 16, 16), channels, 3, stride=2), "relu6")
    x = b.act(b.conv(x, channels, 3, groups=channels), "relu6")
    return b.finish(b.head(b.add(b.conv(x, channels, 1), x), 10))
