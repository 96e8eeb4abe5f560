"""`benchmark`: what it reports, never how fast this machine is."""

from __future__ import annotations

import builtins
import json

import numpy as np
import onnx.parser
import onnx.printer
import pytest

import edgeinfer as ei
from edgeinfer.errors import BackendUnavailableError, InferenceError, InputError, OptionsError
from edgeinfer.feeds import choose
from edgeinfer.measure import benchmark_in_turns
from edgeinfer.runtime.benchmark_report import BenchmarkReport
from edgeinfer.runtime.loadgen import _parse, run_single_stream
from edgeinfer.runtime.session import Session

ADD = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    add (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }"""
)


@pytest.fixture
def session():
    with ei.load(ei.compile(ADD, "onnxruntime", options={"threads": 1})) as session:
        yield session


def report(latencies_ms, **fields):
    values = {"backend": "b", "device": "CPU", "mode": "infer", "seconds": 1.0, "warmup": 0, "machine": "m"}
    return BenchmarkReport(latencies_ms=np.array(latencies_ms, float), **(values | fields))


def test_percentiles_are_latencies_that_were_seen():
    found = report(np.arange(1, 1001), seconds=2.0)
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms) == (501, 901, 991, 1000)
    assert found.mean_ms == pytest.approx(500.5)
    assert found.jitter == pytest.approx(991 / 501)
    assert found.throughput == 500
    assert (found.n, found.min_ms, found.max_ms) == (1000, 1, 1000)


def test_a_single_slow_call_is_not_averaged_away():
    assert report([1.0] * 99 + [50.0]).p999_ms == 50.0


def test_runs_are_counted_and_warmup_is_not(session):
    found = ei.benchmark(session, warmup=3, runs=7, progress=False)
    assert (found.n, found.warmup) == (7, 3)
    assert len(session.latencies_ms) == 10
    assert found.mode == "infer"
    assert found.notes == ("made-up inputs",)
    assert (found.latencies_ms > 0).all()


def test_seconds_bound_the_time(session):
    found = ei.benchmark(session, seconds=0.05, progress=False)
    assert found.n >= 1
    assert found.seconds >= 0.05


@pytest.fixture
def seen(session):
    """The shapes that were really run."""
    shapes = []
    infer = session.infer
    session.infer = lambda feed: shapes.append(feed["x"].shape) or infer(feed)
    return shapes


def test_feeds_are_gone_through_in_turn(session, seen):
    feeds = [{"x": np.zeros((n, 3), np.float32)} for n in (1, 2)]
    found = ei.benchmark(session, feeds, warmup=0, runs=5, progress=False)
    assert seen == [(1, 3), (2, 3), (1, 3), (2, 3), (1, 3)]
    assert found.notes == ("2 feeds in turn", "the feeds have 2 shapes: 1 of x (1, 3); 1 of x (2, 3)")


SOURCES = {
    "a feed": lambda x: {"x": x},
    "an array": lambda x: x,
    "feeds": lambda x: [{"x": x}],
    "arrays": lambda x: [x],
    "a function": lambda x: lambda: iter([x]),
}


@pytest.mark.parametrize("form", SOURCES)
def test_every_source_of_feeds_is_taken_and_its_shape_shown(session, seen, form):
    x = np.zeros((4, 3), np.float32)
    found = ei.benchmark(session, SOURCES[form](x), warmup=1, runs=2, progress=False)
    assert seen == [(4, 3)] * 3
    assert "x float32 (4, 3), N = 4 from feeds" in str(found)
    assert found.to_dict()["inputs"][0]["origins"] == ["from feeds", "declared"]
    assert found.notes == ()


@pytest.mark.parametrize("sized", [{"shapes": {"N": 5}}, {"shapes": {"x": (5, 3)}}, {"batch": 5}])
def test_the_batch_is_what_was_asked_for(session, seen, sized):
    found = ei.benchmark(session, warmup=0, runs=1, progress=False, **sized)
    assert "x float32 (5, 3), N = 5 given" in str(found)
    found = ei.benchmark(session, np.zeros((12, 3), np.float32), warmup=0, runs=2, progress=False, **sized)
    assert seen == [(5, 3)] * 3
    assert "2 of 12 samples do not fill a batch of 5 and are left out" in found.notes


def test_the_assumed_batch_is_said(session):
    found = ei.benchmark(session, warmup=0, runs=1, progress=False)
    assert "x float32 (1, 3), N = 1 assumed" in str(found)


@pytest.mark.parametrize(
    ("feeds", "sized"),
    [
        (None, {"batch": 2, "shapes": {"N": 3}}),
        (np.zeros((6, 3), np.float32), {"batch": 2, "shapes": {"N": 3}}),
        (np.zeros((6, 3), np.float32), {"shapes": {"x": (6, 4)}}),
        (None, {"batch": 0}),
        (None, {"shapes": {"M": 2}}),
        (iter([np.zeros((1, 3), np.float32)]), {}),
        ([], {}),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(session, feeds, sized):
    with pytest.raises(InputError):
        ei.benchmark(session, feeds, runs=1, progress=False, **sized)


def test_a_model_of_a_fixed_batch_says_so():
    text = onnx.printer.to_text(ADD).replace("[N,3]", "[2,3]")
    with ei.load(ei.compile(onnx.parser.parse_model(text), "onnxruntime")) as session:
        found = ei.benchmark(session, np.zeros((5, 3), np.float32), warmup=0, runs=2, progress=False)
        assert found.inputs[0].describe() == "x float32 (2, 3)"
        assert found.notes[0] == "1 of 5 samples do not fill a batch of 2 and are left out"
        with pytest.raises(InputError, match="batch"):
            ei.benchmark(session, batch=3, runs=1, progress=False)


def test_only_so_many_feeds_are_held_in_memory(session, monkeypatch):
    monkeypatch.setattr(choose, "_MAX_BYTES", 3 * 12)
    feeds = [np.zeros((1, 3), np.float32)] * 7
    found = ei.benchmark(session, feeds, warmup=0, runs=1, progress=False)
    assert found.notes == ("the first 3 feeds only", "3 feeds in turn")


def test_arrays_in_device_memory_stay_there():
    """A runner that takes them gets what the caller gave, not a copy of it."""

    class OnDevice:
        shape, dtype, ndim = (2, 3), np.dtype(np.float32), 2

        @property
        def __cuda_array_interface__(self):
            return {"data": (64, False), "shape": (2, 3), "typestr": "<f4", "version": 3}

    taken = []

    class Runner:
        thread_safe = takes_device_arrays = True

        def run(self, feeds, /):
            taken.append(feeds["x"])
            return [np.zeros((2, 3), np.float32)]

        def close(self):
            pass

    session = Session(Runner(), ei.compile(ADD, "onnxruntime").manifest)
    found = ei.benchmark(session, {"x": OnDevice()}, warmup=0, runs=1, progress=False)
    assert [array.pointer for array in taken] == [64]
    assert found.inputs[0].shape == (2, 3)


@pytest.fixture
def two_sessions():
    artifact = ei.compile(ADD, "onnxruntime", options={"threads": 1})
    with ei.load(artifact) as first, ei.load(artifact) as second:
        yield {"first": first, "second": second}


@pytest.mark.parametrize("bound", [False, True])
def test_sessions_take_turns(two_sessions, bound):
    order = []
    if not bound:
        for name, each in two_sessions.items():
            infer = each.infer
            each.infer = lambda feed, name=name, infer=infer: order.append(name) or infer(feed)
    found = benchmark_in_turns(two_sessions, warmup=2, runs=4, bound=bound, batch=2, progress=False)
    if not bound:
        back_and_forth = ["first", "second", "second", "first"] * 2
        assert order == ["first", "first", "second", "second", *back_and_forth]
    assert {name: report.n for name, report in found.reports.items()} == {"first": 4, "second": 4}
    assert found.speedup("first") == 1.0
    assert found.speedup("second") > 0
    assert "x float32 (2, 3), N = 2 given" in str(found)
    assert "4 turns after 2 to warm up" in str(found)
    assert "<table" in found._repr_html_()
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["second"]["speedup"] == found.speedup("second")
    shares = [report.seconds for report in found.reports.values()]
    assert all(share > 0 for share in shares)


def test_turns_need_a_session_and_numbers(two_sessions):
    with pytest.raises(OptionsError, match="no session"):
        benchmark_in_turns({})
    with pytest.raises(OptionsError, match="out of range"):
        benchmark_in_turns(two_sessions, runs=0)


def test_bound_mode_runs_on_the_feed(session):
    found = ei.benchmark(session, {"x": np.ones((2, 3), np.float32)}, runs=5, bound=True, progress=False)
    assert (found.mode, found.n) == ("bound", 5)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"runs": value} for value in (0, -1, 1.5, float("nan"))),
        *({"warmup": value} for value in (-1, float("nan"))),
        *({"seconds": value} for value in (0.0, -1, float("nan"), float("inf"), "2")),
    ],
)
def test_numbers_out_of_range_are_refused(session, wrong):
    with pytest.raises(OptionsError, match="out of range"):
        ei.benchmark(session, **wrong)


def test_feeds_that_do_not_fit_are_refused(session):
    with pytest.raises(InputError):
        ei.benchmark(session, {"x": np.ones((2, 4), np.float32)}, runs=1, progress=False)


def test_the_report_is_for_people_and_programs(session):
    found = ei.benchmark(session, runs=5, progress=False)
    assert "p99.9" in str(found)
    assert "<table" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["n"] == 5
    cost = found.cost(peak_bytes=7)
    assert (cost.latency_p50_ms, cost.peak_bytes) == (found.p50_ms, 7)


def test_load_generator(session):
    pytest.importorskip("mlperf_loadgen")
    found = ei.benchmark(session, runs=100, seconds=0.2, loadgen=True)
    assert found.single_stream is not None
    assert found.single_stream.valid
    assert found.single_stream.queries == found.n >= 100
    assert found.single_stream.early_stopping_p90_ms >= 0
    assert "SingleStream" in str(found)


def test_a_failure_under_the_load_generator_is_raised():
    pytest.importorskip("mlperf_loadgen")
    state = []

    def fails():
        state.append(1)
        if len(state) > 5:
            raise ValueError("boom")

    with pytest.raises(InferenceError, match="boom"):
        run_single_stream([fails], min_queries=10, min_seconds=0.01)


def test_without_the_load_generator_the_error_says_what_to_install(session, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "mlperf_loadgen":
            raise ImportError("no mlperf_loadgen")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendUnavailableError, match=r'pip install "edgeinfer\[bench\]"'):
        ei.benchmark(session, runs=1, loadgen=True)


SUMMARY = """
90.0th percentile latency (ns) : 124605
Result is : INVALID
 * Early stopping 90.0th percentile estimate: 126368
90.00 percentile latency (ns)   : 124605
"""


def test_the_load_generator_summary_is_read():
    found = _parse(SUMMARY, 12)
    assert (found.valid, found.p90_ms, found.early_stopping_p90_ms) == (False, 0.124605, 0.126368)
    assert "INVALID" in found.describe()


def test_no_summary_is_an_error():
    with pytest.raises(InferenceError, match="no result"):
        _parse("", 0)
