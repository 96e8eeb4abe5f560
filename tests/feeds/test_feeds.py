"""`Feeds`: one reader of all forms that data comes in."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import CalibrationError, FeedsError, InputError
from edgeinfer.feeds.feeds import Feeds, feed_nbytes
from tests.feeds.forms import FORMS, Reader


def signature(**inputs: tuple[object, ...]) -> Signature:
    return Signature(
        inputs=[TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, *shape) in inputs.items()],
        outputs=[],
    )


OPEN = signature(x=(np.float32, "N", 3))
FIXED = signature(x=(np.float32, 4, 3))
TWO = signature(ids=(np.int64, "N", 2), mask=(np.bool_, "N", 2))


def rows(*counts: int, start: int = 0) -> list[np.ndarray]:
    """Arrays of so many rows each, every row with a number of its own."""
    numbers = np.arange(start, start + 3 * sum(counts), dtype=np.float32).reshape(-1, 3)
    return np.split(numbers, np.cumsum(counts)[:-1])


def values(feeds) -> list[dict[str, list]]:
    return [{name: (str(array.dtype), array.tolist()) for name, array in feed.items()} for feed in feeds]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([OPEN, FIXED, TWO]),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.lists(st.sampled_from(sorted(set(FORMS) - {"mappings"})), min_size=1, max_size=3, unique=True),
    st.integers(0, 2**16),
)
def test_the_same_data_in_any_form_gives_the_same_feeds(sig, counts, forms, seed):
    rng = np.random.default_rng(seed)
    items = [
        {
            spec.name: (rng.standard_normal((count, spec.shape[1])) * 4).astype(spec.dtype)
            for spec in sig.inputs
        }
        for count in counts
    ]
    found = []
    for form in ("mappings", *forms):
        make, only_one = FORMS[form]
        if only_one and len(sig.inputs) > 1:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                feeds = Feeds.of(make(items, Path(folder)), sig)
                first, second = values(feeds), values(feeds)
                fingerprint = feeds.fingerprint()
            except FeedsError as error:
                found.append(error.what)
                continue
        assert first == second
        found.append((first, fingerprint))
    assume(found)  # several inputs, and only forms for one
    assert all(each == found[0] for each in found)
    # What was given is what comes, in order; only rows that fill no batch of a fixed size are left out.
    if sig is FIXED and sum(counts) < 4:
        assert "fewer samples" in found[0]
        return
    size = 4 if sig is FIXED else None
    for spec in sig.inputs:
        given_rows = np.concatenate([item[spec.name] for item in items])
        got = np.concatenate([np.array(feed[spec.name][1], spec.dtype) for feed in found[0][0]])
        kept = len(given_rows) if size is None else len(given_rows) // size * size
        np.testing.assert_array_equal(got, given_rows[:kept])
        if size is not None:
            assert {len(feed[spec.name][1]) for feed in found[0][0]} == {size}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 9))
def test_batches_hold_every_row_once_and_in_order(counts, size):
    feeds = Feeds.of(rows(*counts), OPEN)
    total = sum(counts)
    batched = feeds.batched(size)
    if total < size:
        with pytest.raises(FeedsError, match="fewer samples"):
            list(batched)
        return
    found = list(batched)
    assert [feed["x"].shape for feed in found] == [(size, 3)] * (total // size)
    assert len(batched) == len(found)
    np.testing.assert_array_equal(
        np.concatenate([feed["x"] for feed in found]), np.concatenate(rows(*counts))[: total // size * size]
    )
    left = total % size
    assert batched.notes == (
        (f"{left} of {total} samples do not fill a batch of {size} and are left out",) if left else ()
    )


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 12))
def test_held_out_feeds_are_not_fitted_on_where_there_are_enough(total, count):
    items = [np.full((1, 3), index, np.float32) for index in range(total)]
    feeds = Feeds.of(lambda: iter(items), OPEN)
    fit, judged = feeds.hold_out(count)
    numbers = [float(feed["x"][0, 0]) for feed in judged]
    kept = [float(feed["x"][0, 0]) for feed in fit]
    assert len(judged) == min(count, total)
    assert numbers == sorted(set(numbers))
    if 4 * len(judged) > total:
        assert kept == [float(index) for index in range(total)]
    else:
        assert sorted(kept + numbers) == [float(index) for index in range(total)]


def test_the_length_is_known_where_nothing_must_be_read_for_it(tmp_path):
    for index, array in enumerate(rows(1, 1, 1)):
        np.save(tmp_path / f"{index}.npy", array)
    assert len(Feeds.of(tmp_path, OPEN)) == 3
    assert len(Feeds.of(rows(2, 2, 2), FIXED)) == 1
    assert len(Feeds.of(rows(8, 8), FIXED)) == len(Feeds.of(rows(16)[0], FIXED)) == 4
    assert len(Feeds.of(rows(1, 2, 3), OPEN).take(2)) == 2
    assert len(Feeds.of(rows(1, 2, 3), OPEN).every_other()) == 2
    unknown = Feeds.of(lambda: rows(1, 2), OPEN)
    with pytest.raises(TypeError, match="not known"):
        len(unknown)
    assert len(list(unknown)) == 2
    assert unknown  # a value without a length is not empty


def test_one_array_is_one_feed_or_its_rows():
    feeds = Feeds.of(rows(5)[0], OPEN)
    assert [feed["x"].shape for feed in feeds] == [(5, 3)]
    one_by_one = feeds.row_by_row()
    assert [feed["x"].shape for feed in one_by_one] == [(1, 3)] * 5
    assert len(one_by_one) == 5
    listed = Feeds.of(rows(5), OPEN)
    assert listed.row_by_row() is listed
    assert [feed["x"].shape for feed in Feeds.of({"x": rows(8)[0]}, FIXED).row_by_row()] == [(4, 3)] * 2


@pytest.mark.parametrize(
    "source",
    [
        iter(rows(1, 1)),
        (array for array in rows(1, 1)),
        map(np.copy, rows(1, 1)),
        zip(rows(1), [1], strict=True),
    ],
)
def test_what_can_be_gone_through_once_is_refused_at_once(source):
    with pytest.raises(FeedsError, match="only once") as caught:
        Feeds.of(source, OPEN)
    assert "generator function itself" in str(caught.value.hint)


def test_a_function_that_hands_out_one_iterator_again_is_noticed():
    iterator = iter(rows(1, 1))
    feeds = Feeds.of(lambda: iterator, OPEN)
    assert len(list(feeds)) == 2
    with pytest.raises(FeedsError, match="only once"):
        list(feeds)


def test_a_reader_starts_over_and_one_that_cannot_is_refused():
    feeds = Feeds.of(Reader([{"x": array} for array in rows(1, 1, 1)]), OPEN)
    feeds.first()  # leaves it in the middle
    assert len(list(feeds)) == len(list(feeds)) == 3

    class Once:
        def get_next(self):
            return None

    with pytest.raises(FeedsError, match="cannot start over") as caught:
        Feeds.of(Once(), OPEN)
    assert "rewind" in str(caught.value.hint)


@pytest.mark.parametrize("source", [3, None, object(), 2.5])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(FeedsError, match="no feeds") as caught:
        Feeds.of(source, OPEN)
    assert "CalibrationDataReader" in str(caught.value.expected)


def test_a_data_set_without_batches_is_refused_with_a_hint():
    class DataSet:
        def __getitem__(self, index):
            return np.zeros(3, np.float32), 0

        def __len__(self):
            return 2

    with pytest.raises(FeedsError, match="no feeds") as caught:
        Feeds.of(DataSet(), OPEN)
    assert "DataLoader" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (np.zeros((1, 3)), "dtype"),
        (np.zeros((1, 4), np.float32), "shape"),
        (np.zeros(3, np.float32), "shape"),
        ({"z": np.zeros((1, 3), np.float32)}, "names"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "names"),
        ("text", "neither an array nor a mapping"),
        (None, "neither an array nor a mapping"),
        ([], "neither an array nor a mapping"),
        ({"x": None}, "dtype"),
        (Path("/nowhere/a.npy"), "no such file"),
    ],
)
@pytest.mark.parametrize("sig", [OPEN, FIXED])
def test_a_bad_sample_is_named_by_its_number(bad, what, sig):
    with pytest.raises(FeedsError, match=what) as caught:
        list(Feeds.of([*rows(1, 1), bad], sig))
    assert caught.value.facts["sample"] == 2
    assert (caught.value.where or "").startswith("sample 2")
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, CalibrationError)


def test_arrays_for_a_model_with_two_inputs_need_names_or_places():
    ids, mask = np.zeros((1, 2), np.int64), np.ones((1, 2), np.bool_)
    with pytest.raises(FeedsError, match="which input it is for"):
        list(Feeds.of([ids], TWO))
    assert [list(feed) for feed in Feeds.of([(ids, mask), (ids, mask, "label")], TWO)] == [
        ["ids", "mask"]
    ] * 2


def test_inputs_with_unlike_rows_are_refused_with_the_sample():
    fixed = signature(a=(np.float32, 2, 1), b=(np.float32, 2, 1))
    feed = {"a": np.zeros((4, 1), np.float32), "b": np.zeros((2, 1), np.float32)}
    with pytest.raises(FeedsError, match="shape") as caught:
        list(Feeds.of([feed], fixed))
    assert "sample 0" in str(caught.value.where)


def test_a_wrong_length_is_not_taken_for_a_batch():
    line = signature(x=(np.float32, 2))
    with pytest.raises(FeedsError, match="shape"):
        list(Feeds.of(np.zeros(4, np.float32), line))


def test_a_failing_source_is_wrapped_with_its_place():
    def source():
        yield rows(1)[0]
        raise OSError("disk on fire")

    with pytest.raises(FeedsError, match="disk on fire") as caught:
        list(Feeds.of(source, OPEN))
    assert caught.value.where == "sample 1"


def test_a_tensor_that_gives_no_array_is_named():
    class Broken:
        shape, dtype = (1, 3), "bfloat16"

        def numpy(self):
            raise TypeError("Got unsupported ScalarType BFloat16")

    with pytest.raises(FeedsError, match="BFloat16") as caught:
        list(Feeds.of([Broken()], OPEN))
    assert caught.value.facts["sample"] == 0


def test_a_function_that_returns_no_iterator_is_refused():
    with pytest.raises(FeedsError, match="does not return an iterator"):
        list(Feeds.of(lambda: 3, OPEN))
    with pytest.raises(FeedsError, match="samples"):
        list(Feeds.of(_needs_an_argument, OPEN))


def _needs_an_argument(samples):
    return samples


def test_feeds_of_feeds_fit_the_other_signature():
    feeds = Feeds.of(rows(4, 4), OPEN)
    assert Feeds.of(feeds, OPEN) is feeds
    assert [feed["x"].shape for feed in Feeds.of(feeds, FIXED)] == [(4, 3)] * 2
    with pytest.raises(FeedsError, match="shape"):
        list(Feeds.of(feeds, signature(x=(np.float32, "N", 7))))


def test_a_batch_of_another_size_needs_an_open_one():
    assert Feeds.of(rows(4), FIXED).batched(4)
    with pytest.raises(FeedsError, match="another size"):
        Feeds.of(rows(4), FIXED).batched(2)
    with pytest.raises(FeedsError, match="another size"):
        Feeds.of(rows(4), OPEN).batched(0)
    with pytest.raises(FeedsError, match="another size"):
        Feeds.of(
            [{"x": rows(1)[0], "t": np.float32(1)}], signature(x=(np.float32, "N", 3), t=(np.float32,))
        ).batched(1)


def test_a_pass_holds_one_feed_at_a_time():
    def source():
        for _ in range(64):
            yield np.zeros((1, 3 * 2**16), np.float32)  # 768 kB

    feeds = Feeds.of(source, signature(x=(np.float32, "N", 3 * 2**16)))
    tracemalloc.start()
    count = sum(1 for _ in feeds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 64
    assert peak < 4 << 20


def test_there_is_a_first_feed_or_an_error():
    assert Feeds.of(rows(2), OPEN).first()["x"].shape == (2, 3)
    assert feed_nbytes(Feeds.of(rows(2), OPEN).first()) == 24
    with pytest.raises(FeedsError, match="no feed"):
        Feeds.of([], OPEN).first()


def test_it_says_what_it_is(tmp_path):
    np.save(tmp_path / "a.npy", rows(1)[0])
    assert repr(Feeds.of(tmp_path, OPEN)) == f"<Feeds 1 files in {tmp_path}, for x float32 (N, 3)>"
    assert Feeds.of(rows(1, 1), OPEN).what == "2 feeds"
