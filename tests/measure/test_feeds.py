"""Made-up feeds, and the forms in which feeds are taken."""

from __future__ import annotations

import numpy as np
import pytest

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import InputError
from edgeinfer.feeds.generate import as_feeds, generate_feeds, resolve_shapes

SIGNATURE = Signature(
    inputs=[
        TensorSpec(name="x", dtype=np.float32, shape=("N", 3, None)),
        TensorSpec(name="ids", dtype=np.int64, shape=("N", "L")),
    ],
    outputs=[],
)
ONE = Signature(inputs=[TensorSpec(name="x", dtype=np.float32, shape=(2,))], outputs=[])


def test_unknown_dimensions_are_one():
    assert resolve_shapes(SIGNATURE) == {"x": (1, 3, 1), "ids": (1, 1)}


def test_shapes_by_dimension_and_by_input():
    assert resolve_shapes(SIGNATURE, {"N": 4, "L": 7}) == {"x": (4, 3, 1), "ids": (4, 7)}
    assert resolve_shapes(SIGNATURE, {"x": (2, 3, 5)}) == {"x": (2, 3, 5), "ids": (2, 1)}


@pytest.mark.parametrize("shapes", [{"M": 2}, {"x": (2, 4, 5)}, {"x": (2, 3)}, {"x": (2, 3, 1), "N": 5}])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError):
        resolve_shapes(SIGNATURE, shapes)


def test_the_same_seed_makes_the_same_feeds():
    first, second = generate_feeds(SIGNATURE, 2, seed=3), generate_feeds(SIGNATURE, 2, seed=3)
    other = generate_feeds(SIGNATURE, 2, seed=4)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert a["x"].dtype == np.float32
        assert set(np.unique(a["ids"])) <= {0, 1}
    assert not np.array_equal(first[0]["x"], other[0]["x"])


def test_text_cannot_be_made_up():
    text = Signature(inputs=[TensorSpec(name="s", dtype=object, shape=(1,))], outputs=[])
    with pytest.raises(InputError, match="cannot be made up"):
        generate_feeds(text)


def test_feeds_come_in_many_forms_and_can_be_gone_through_twice():
    array = np.zeros(2, np.float32)
    for given in ({"x": array}, array, [array, array], [{"x": array}], iter([array])):
        feeds = as_feeds(given, ONE)
        assert [list(feed) for feed in feeds] == [list(feed) for feed in feeds]
        assert all(list(feed) == ["x"] for feed in feeds)


@pytest.mark.parametrize("given", [3, []])
def test_what_is_no_feed_is_refused(given):
    with pytest.raises(InputError):
        as_feeds(given, ONE)
