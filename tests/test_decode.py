"""From JSON to frozen values and back: nothing is lost, and nothing is bent into a type."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.artifact.decode import DecodeError, decode, encode
from edgeinfer.values import as_tuple


@attrs.frozen(kw_only=True)
class Leaf:
    count: int
    size: float = 0.0
    name: str = ""
    ready: bool = False


@attrs.frozen(kw_only=True)
class Tree:
    leaf: Leaf
    tags: frozenset[str] = frozenset()
    leaves: tuple[Leaf, ...] = attrs.field(default=(), converter=as_tuple)
    by_name: Mapping[str, Leaf] = attrs.field(factory=dict)
    lists: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    anything: Mapping[str, object] = attrs.field(factory=dict)
    maybe: Leaf | None = None
    number: int | None = None
    pair: tuple[int, int] = (0, 0)
    positive: int = attrs.field(default=1, validator=attrs.validators.gt(0))


TEXTS = st.text(max_size=5)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.builds(Leaf, count=st.integers(), size=FLOATS, name=TEXTS, ready=st.booleans())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
TREES = st.builds(
    Tree,
    leaf=LEAVES,
    tags=st.frozensets(TEXTS, max_size=3),
    leaves=st.lists(LEAVES, max_size=3),
    by_name=st.dictionaries(TEXTS, LEAVES, max_size=3),
    lists=st.dictionaries(TEXTS, st.lists(TEXTS, max_size=3).map(tuple), max_size=3),
    anything=st.dictionaries(TEXTS, JSON, max_size=3),
    maybe=st.none() | LEAVES,
    number=st.none() | st.integers(),
    pair=st.tuples(st.integers(), st.integers()),
    positive=st.integers(1),
)


@settings(deadline=None)
@given(TREES)
def test_what_is_written_is_read(tree):
    assert decode(Tree, json.loads(json.dumps(encode(tree)))) == tree


@pytest.mark.parametrize(
    ("fields", "where", "why"),
    [
        ([], "", "not an object"),
        ({}, "", "missing field leaf"),
        ({"leaf": {}}, "leaf", "missing field count"),
        ({"leaf": {"count": 1, "extra": 1}}, "leaf", "unknown field extra"),
        ({"leaf": {"count": "1"}}, "leaf.count", "not of type int"),
        ({"leaf": {"count": True}}, "leaf.count", "not of type int"),
        ({"leaf": {"count": 1.0}}, "leaf.count", "not of type int"),
        ({"leaf": {"count": 1, "size": "2"}}, "leaf.size", "not of type float"),
        ({"leaf": {"count": 1, "name": 5}}, "leaf.name", "not of type str"),
        ({"leaf": {"count": 1, "ready": 1}}, "leaf.ready", "not of type bool"),
        ({"leaf": {"count": 1}, "leaves": [{"count": 1}, {"count": None}]}, "leaves[1].count", "int"),
        ({"leaf": {"count": 1}, "leaves": {}}, "leaves", "not a list"),
        ({"leaf": {"count": 1}, "by_name": {"a": 3}}, "by_name['a']", "not an object"),
        ({"leaf": {"count": 1}, "by_name": []}, "by_name", "not an object"),
        ({"leaf": {"count": 1}, "lists": {"a": ["x", 1]}}, "lists['a'][1]", "not of type str"),
        ({"leaf": {"count": 1}, "lists": {"a": "xy"}}, "lists['a']", "not a list"),
        ({"leaf": {"count": 1}, "tags": "ab"}, "tags", "not a list"),
        ({"leaf": {"count": 1}, "tags": ["a", 1]}, "tags[1]", "not of type str"),
        ({"leaf": {"count": 1}, "maybe": 1}, "maybe", "not an object"),
        ({"leaf": {"count": 1}, "number": "1"}, "number", "not of type int"),
        ({"leaf": {"count": 1}, "pair": []}, "pair", "2 items"),
        ({"leaf": {"count": 1}, "pair": [1, 2, 3]}, "pair", "2 items"),
        ({"leaf": {"count": 1}, "pair": [1, "2"]}, "pair[1]", "not of type int"),
        ({"leaf": {"count": 1}, "positive": 0}, "", "ValueError"),
    ],
)
def test_what_is_not_of_its_type_is_refused_with_its_place(fields, where, why):
    with pytest.raises(DecodeError) as caught:
        decode(Tree, fields)
    assert caught.value.path == where
    assert why in caught.value.reason


def test_a_whole_number_is_a_float_too():
    assert decode(Leaf, {"count": 1, "size": 2}).size == 2


def test_hooks_stand_in_for_classes():
    encoded = encode(Tree(leaf=Leaf(count=3)), {Leaf: lambda leaf: leaf.count})
    assert encoded["leaf"] == 3
    assert decode(Tree, {"leaf": 3}, {Leaf: lambda value: Leaf(count=value)}).leaf.count == 3
    with pytest.raises(DecodeError, match="leaf: KeyError"):
        decode(Tree, {"leaf": {}}, {Leaf: lambda value: Leaf(count=value["count"])})


def test_a_type_that_is_not_known_is_an_error_and_not_a_guess():
    @attrs.frozen
    class Odd:
        items: list[int]

    with pytest.raises(DecodeError, match="not decoded"):
        decode(Odd, {"items": [1]})


@attrs.frozen(kw_only=True)
class Partly:
    name: str
    source: object = attrs.field(default=None, metadata={"json": False})


def test_fields_can_be_left_out_and_unknown_ones_passed_over():
    assert encode(Partly(name="a", source=object())) == {"name": "a"}
    assert decode(Partly, {"name": "a"}) == Partly(name="a")
    for extra in ("source", "later"):
        with pytest.raises(DecodeError, match="unknown field"):
            decode(Partly, {"name": "a", extra: 1})
        assert decode(Partly, {"name": "a", extra: 1}, skip_unknown=True) == Partly(name="a")


@attrs.frozen(kw_only=True)
class Nested:
    inner: Nested | None = None


def test_a_class_may_have_itself_in_its_fields():
    assert decode(Nested, {"inner": {"inner": None}}) == Nested(inner=Nested())
