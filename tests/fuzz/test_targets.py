"""Each target of the fuzzer on its seeds, on small changes of them, and on what was found before."""

from __future__ import annotations

import contextlib
import json
import random
import warnings

import numpy as np
import onnx
import pytest

from edgeinfer.calibration.observers import HistogramObserver, MinMaxObserver, MovingAverageObserver
from edgeinfer.errors import InvalidModelError, RecipeError, TuningError
from edgeinfer.fleet.errors import DocumentError
from edgeinfer.plain_json import MAX_DEPTH, parse_json
from tests.fuzz import seeds
from tests.fuzz.mutate import SEPARATOR
from tests.fuzz.targets import ALLOWED, TARGETS, remove_folder

CHANGES = 25


@pytest.fixture(autouse=True, scope="module")
def _folder():
    yield
    remove_folder()


@pytest.mark.parametrize("name", TARGETS)
def test_only_typed_errors_come_out(name):
    target = TARGETS[name]
    valid = target.seeds()
    accepted = 0
    for data in valid:
        try:
            target.run(data)
            accepted += 1
        except ALLOWED:
            pass
    assert accepted
    rng = random.Random(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx-ir warns of keys that it does not know
        for _ in range(CHANGES):
            with contextlib.suppress(ALLOWED):
                target.run(target.mutate(rng.choice(valid), rng))


# What was found, and is fixed: the input, small, and what comes out now.

START = b'{"kind":"start"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"kind":[]}',
        b'{"kind":"later"}',
        b'{"kind":"start","seconds":"x"}',
        b'{"kind":"made","trial":1,"outcome":"ok","candidate":"x"}',
        b'{"kind":"made","trial":1,"outcome":"ok","candidate":{"effort":"x"}}',
        b'{"kind":"made","trial":"1","outcome":"ok","candidate":{}}',
        b'{"kind":"rung","name":"probe","timings":{"0":{}}}',
        b'{"kind":"rung","name":"probe","timings":{"x":{"outcome":"ok"}}}',
        b'{"kind":"rung","name":"probe","timings":"x"}',
        b'{"kind":"prepared","layers":[["a","Conv"]],"prunes":[]}',
        b'{"kind":"sensitivity","layers":[1]}',
        b'{"kind":"evaluated","trial":[],"metric":1}',
        b'{"kind":"memory","trial":1}',
        b'{"kind":"layers","trial":1,"us":3}',
    ],
)
def test_a_journal_with_a_record_that_is_none(line):
    with pytest.raises(TuningError, match="no run of this version writes") as caught:
        TARGETS["tuning_journal"].run(START + line + b"\n")
    assert caught.value.where == "record 2"


def test_a_journal_line_that_is_no_object():
    with pytest.raises(TuningError, match="damaged"):
        TARGETS["tuning_journal"].run(b'[["kind","end"]]\n' + START)


def test_a_journal_whose_records_end_in_carriage_returns_only():
    """They were passed over, but not counted, so that records behind them were cut off."""
    with pytest.raises(TuningError, match="damaged"):
        TARGETS["tuning_journal"].run(START[:-1] + b"\r" + START + START)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": 3},
        {"digest": {}},
        {"settings": []},
        {"decisions": "x"},
        {"name": None},
        {"later": 1},
    ],
    ids=str,
)
def test_a_recipe_with_a_step_that_is_none(change):
    text, _, tensors = seeds.recipes()[0].partition(SEPARATOR)
    fields = json.loads(text)
    fields["steps"][0] |= change
    with pytest.raises(RecipeError, match="That is no recipe"):
        TARGETS["recipe"].run(json.dumps(fields).encode() + SEPARATOR + tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["node"].append({"r": 1}),
        lambda d: d["node"].append({"attribute": [{"name": "a", "type": {}}]}),
        lambda d: d["input"].append({"type": {"tensor_type": {"shape": {"dim": 0.5}}}}),
        lambda d: d["initializer"][0]["tensor"].update(dims=[None]),
        lambda d: d.update(ir_version=1 << 70),
        lambda d: d.update(metadata={"a": "\ud800"}),
    ],
)
def test_a_step_that_no_model_can_be_made_of(change):
    delta = json.loads(seeds.deltas()[0])
    change(delta)
    with pytest.raises(RecipeError):
        TARGETS["replayed_recipe"].run(json.dumps(delta).encode())


@pytest.mark.parametrize(
    ("observer", "state"),
    [
        (HistogramObserver(bins=16), {"whole": np.array([999999, 0, 0, 0, 4096])}),
        (HistogramObserver(bins=16), {"counts": np.zeros(3, np.int64)}),
        (HistogramObserver(bins=16), {"counts": np.full(16, -1)}),
        (HistogramObserver(bins=16), {"counts": np.ones(16, np.int64), "ends": np.array([0.0, 1e300])}),
        (HistogramObserver(bins=16), {"ends": np.array([1.0, 0.0])}),
        (MinMaxObserver(), {"ends": np.array([np.nan, 1.0])}),
        (MovingAverageObserver(), {"average": np.array([2.0, 1.0])}),
    ],
)  # fmt: skip
def test_an_observer_refuses_a_state_that_it_cannot_have(observer, state):
    observer.update(np.ones((2, 3), np.float32))
    before = observer.range()
    with pytest.raises(ValueError, match=r"no extremes|counts|exponent|bins from|unpack"):
        observer.restore(observer.state() | state)
    assert observer.range() == before


@pytest.mark.parametrize("name", ["feeds", "golden"])
def test_an_archive_whose_member_is_no_array(name):
    with pytest.raises(ALLOWED, match=r"numpy"):
        TARGETS[name].run(b"mno array")


def test_an_output_whose_elements_have_no_type():
    proto = onnx.ModelProto()
    proto.ParseFromString(seeds.models()[0])
    proto.graph.output[0].type.tensor_type.elem_type = 0
    with pytest.raises(InvalidModelError, match="no type"):
        TARGETS["model"].run(proto.SerializeToString())


def test_documents_that_are_nested_too_deeply():
    deep = b"[" * 400 + b"]" * 400
    report = seeds.reports()[0].replace(b'"facts":{', b'"facts":{"a":' + deep + b",")
    with pytest.raises(DocumentError, match="nested"):
        TARGETS["report"].run(report)
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(ValueError, match="nested"):
            parse_json(b"[" * depth + b"]" * depth)
