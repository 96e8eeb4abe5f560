"""`benchmark`: what it reports, never how fast this machine is."""

from __future__ import annotations

import builtins
import json

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import BackendUnavailableError, InferenceError, InputError, OptionsError
from edgeinfer.runtime.benchmark import BenchmarkReport
from edgeinfer.runtime.loadgen import _parse, run_single_stream

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


def test_feeds_are_gone_through_in_turn(session):
    feeds = [{"x": np.zeros((n, 3), np.float32)} for n in (1, 2)]
    assert ei.benchmark(session, feeds, warmup=0, runs=4, progress=False).n == 4


def test_shapes_give_symbolic_dimensions_a_size(session):
    seen = []
    infer = session.infer
    session.infer = lambda feed: seen.append(feed["x"].shape) or infer(feed)
    ei.benchmark(session, warmup=0, runs=1, shapes={"N": 5}, progress=False)
    assert seen == [(5, 3)]


def test_bound_mode_runs_on_the_feed(session):
    found = ei.benchmark(session, {"x": np.ones((2, 3), np.float32)}, runs=5, bound=True, progress=False)
    assert (found.mode, found.n) == ("bound", 5)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"warmup": -1}, {"seconds": 0.0}])
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
