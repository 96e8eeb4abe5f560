"""Static shapes: what is declared, given, from feeds, and the one thing that is assumed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import InputError
from edgeinfer.feeds.choose import shapes_of_feeds
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.feeds.shapes import describe_inputs, input_shapes, resolve_shapes


def signature(**shapes) -> Signature:
    return Signature(
        inputs=[TensorSpec(name=name, dtype=np.float32, shape=shape) for name, shape in shapes.items()],
        outputs=[],
    )


TEXT = Signature(
    inputs=[
        TensorSpec(name="x", dtype=np.float32, shape=("N", 3, None)),
        TensorSpec(name="ids", dtype=np.int64, shape=("N", "L")),
    ],
    outputs=[],
)


@pytest.mark.parametrize(
    ("shapes", "resolved"),
    [
        ({"x": ("N", 3, 8, 8)}, {"x": (1, 3, 8, 8)}),
        ({"x": (None, 5)}, {"x": (1, 5)}),
        ({"x": ("s77", 5)}, {"x": (1, 5)}),  # what torch.export writes
        ({"x": (9, "batch_size", 2)}, {"x": (9, 1, 2)}),  # the steps first
        ({"x": ("N", 5), "mask": ("N",)}, {"x": (1, 5), "mask": (1,)}),
        ({"x": ("u", 5), "mask": ("u",)}, {"x": (1, 5), "mask": (1,)}),
        ({"x": (), "y": (2, 3)}, {"x": (), "y": (2, 3)}),
    ],
)
def test_a_batch_of_one_is_assumed(shapes, resolved):
    assert resolve_shapes(signature(**shapes)) == resolved


@pytest.mark.parametrize(
    ("shapes", "missing", "hint"),
    [
        ({"x": ("N", 3, "H", "W")}, ("H", "W"), 'shapes={"H": …, "W": …} (--shape H=… --shape W=…)'),
        ({"x": ("N", 3, None, None)}, (), 'shapes={"x": (…, …, …, …)} (--shape x=…x…x…x…)'),
        ({"x": ("N", "seq")}, ("seq",), 'shapes={"seq": …}'),
        ({"x": ("seq_len", 80)}, ("seq_len",), 'shapes={"seq_len": …}'),
        ({"x": ("d", "d")}, ("d",), 'shapes={"d": …}'),
        ({"wave": ("samples",)}, ("samples",), 'shapes={"samples": …}'),
        ({"wave": (None,)}, (), 'shapes={"wave": (…)}'),
        ({"x": None}, (), "shapes={"),
    ],
)
def test_no_other_size_is_made_up(shapes, missing, hint):
    with pytest.raises(InputError, match="not known") as caught:
        resolve_shapes(signature(**shapes))
    assert caught.value.facts["missing"] == missing
    assert hint in str(caught.value.hint)
    name = next(iter(shapes))
    assert caught.value.where == f"input {name!r}"


def test_shapes_by_dimension_and_by_input():
    assert resolve_shapes(TEXT, {"N": 4, "L": 7, "x": (4, 3, 2)}) == {"x": (4, 3, 2), "ids": (4, 7)}
    assert resolve_shapes(TEXT, {"x": [2, 3, 5], "L": np.int64(7)}) == {"x": (2, 3, 5), "ids": (2, 7)}


def test_what_an_entire_shape_says_holds_for_inputs_before_it_too():
    assert resolve_shapes(signature(a=("N", 2), b=("N", 3)), {"b": (5, 3)}) == {"a": (5, 2), "b": (5, 3)}


@pytest.mark.parametrize(
    "shapes",
    [
        {"M": 2},
        {"x": (2, 4, 5)},
        {"x": (2, 3)},
        {"x": (2, 3, 1), "N": 5, "L": 1},
        {"x": (2, 3, 1), "ids": (3, 1)},
        {"x": 3},
        {"N": (3,)},
        {"N": -1},
        {"N": True, "L": 2, "x": (1, 3, 1)},
        {"N": float("nan"), "L": 2},
        {"N": 2.0, "L": 2},
        {"x": "123"},
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError):
        resolve_shapes(TEXT, shapes)


def test_it_is_said_where_each_size_is_from():
    sig = signature(x=("N", 3, "H", "W"), y=(2,))
    text = describe_inputs(input_shapes(sig, {"H": 8, "W": 9}))
    assert text == "x float32 (1, 3, 8, 9), H = 8 and W = 9 given, N = 1 assumed; y float32 (2,)"
    feed = {"x": np.zeros((4, 3, 2, 2), np.float32), "y": np.zeros(2, np.float32)}
    found, notes = shapes_of_feeds(sig, [feed, feed])
    assert describe_inputs(found) == (
        "x float32 (4, 3, 2, 2), N = 4 and H = 2 and W = 2 from feeds; y float32 (2,)"
    )
    assert notes == ()
    assert json.loads(json.dumps(found[0].to_dict()))["origins"] == [
        "from feeds",
        "declared",
        "from feeds",
        "from feeds",
    ]


def test_feeds_of_several_shapes_are_told_apart():
    feeds = [{"x": np.zeros((rows, 5), np.float32)} for rows in (1, 2, 2)]
    _, notes = shapes_of_feeds(signature(x=("N", 5)), feeds)
    assert notes == ("the feeds have 2 shapes: 2 of x (2, 5); 1 of x (1, 5)",)


DIMS = st.one_of(st.integers(1, 4), st.sampled_from(["N", "L", "H", "u"]), st.none())


@given(st.lists(st.lists(DIMS, max_size=4), min_size=1, max_size=3), st.data())
def test_every_size_is_declared_given_or_a_batch_of_one(ranks, data):
    """For any signature and any sizes given: what is found fits, and nothing else is ever assumed."""
    sig = signature(**{f"i{index}": tuple(dims) for index, dims in enumerate(ranks)})
    given_sizes = (
        data.draw(st.dictionaries(st.sampled_from(sig.symbols), st.integers(0, 5))) if sig.symbols else {}
    )
    found, refused = (), ""
    try:
        found = input_shapes(sig, given_sizes)
    except InputError as error:
        refused = str(error.facts["input"])
    if refused:
        assert not next(spec for spec in sig.inputs if spec.name == refused).is_static
        return
    sizes: dict[str, int] = {}
    for spec, shape in zip(sig.inputs, found, strict=True):
        for dim, size, origin in zip(spec.shape, shape.shape, shape.origins, strict=True):
            assert {"declared": size == dim, "given": size == given_sizes.get(dim), "assumed": size == 1}[
                origin
            ]
            if isinstance(dim, str):
                assert sizes.setdefault(dim, size) == size


def test_the_same_seed_makes_the_same_feeds():
    sizes = {"x": (1, 3, 2), "L": 4}
    first, second, other = (generate_feeds(TEXT, 2, shapes=sizes, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert a["x"].dtype == np.float32
        assert set(np.unique(a["ids"])) <= {0, 1}
    assert not np.array_equal(first[0]["x"], other[0]["x"])


def test_text_cannot_be_made_up():
    text = Signature(inputs=[TensorSpec(name="s", dtype=object, shape=(1,))], outputs=[])
    with pytest.raises(InputError, match="cannot be made up"):
        generate_feeds(text)
