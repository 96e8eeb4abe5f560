"""Some of the flips of `benchmarks/bit_flips.py`, which makes them by the hundred thousand."""

from __future__ import annotations

import random

import pytest

from benchmarks import bit_flips


@pytest.mark.parametrize(
    ("make", "count"), [(bit_flips.artifact, 300), (bit_flips.release, 60), (bit_flips.documents, 140)]
)
def test_no_flipped_bit_is_missed(make, count, tmp_path):
    assert bit_flips.flip(make.__name__, *make(tmp_path), count, random.Random(3)) == 0
