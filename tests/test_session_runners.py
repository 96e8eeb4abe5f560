"""Runners that break their contract, and golden inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.manifest import Golden
from edgeinfer.errors import (
    ArtifactError,
    GoldenMismatchError,
    InferenceError,
)
from tests.session_kit import BACKENDS, DYNAMIC, fake_session


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    pytest.importorskip(request.param)
    return request.param


# Runners that break their contract, or have no bound mode


def test_a_runner_that_is_not_thread_safe_is_entered_by_one_thread_at_a_time():
    with fake_session() as session, ThreadPoolExecutor(4) as pool:
        bound = [session.bind() for _ in range(2)]
        work = [*[lambda: session.infer(np.ones(3, np.float32))] * 40, *[one.run for one in bound] * 20]
        for future in [pool.submit(task) for task in work]:
            future.result()
        bound[0].inputs["x"][...] = 4
        bound[0].run()
        np.testing.assert_array_equal(bound[0].outputs["y"], 8)


def test_vendor_errors_are_wrapped_with_their_cause():
    with fake_session() as session:
        with pytest.raises(InferenceError, match="the vendor's complaint") as caught:
            session.infer(-np.ones(3, np.float32))
        assert isinstance(caught.value.__cause__, ValueError)
        bound = session.bind()
        bound.inputs["x"][...] = -1
        with pytest.raises(InferenceError, match="the vendor's complaint"):
            bound.run()
    assert session._runner.closed


def test_a_runner_that_does_not_explain_says_so():
    with fake_session() as session:
        assert session.execution().layers == ()
        assert session.execution().notes


# Golden inputs


def golden(y: list[float], **tolerances: float) -> Golden:
    return Golden(
        inputs={"x": np.array([1, 2, 3], np.float32)},
        outputs={"y": np.array(y, np.float32)},
        rtol=tolerances.get("rtol", 0),
        atol=tolerances.get("atol", 0),
    )


@pytest.mark.parametrize(
    "expected", [golden([2, 4, 6]), golden([2.1, 4, 6], atol=0.11), golden([2, 4.3, 6], rtol=0.1)]
)
def test_golden_outputs_within_the_tolerances(expected):
    with fake_session(expected) as session:
        session.check_golden()


def test_golden_outputs_that_differ_name_the_output_and_the_worst_difference():
    with (
        fake_session(golden([2, 4.25, 8], atol=0.5)) as session,
        pytest.raises(GoldenMismatchError) as caught,
    ):
        session.check_golden()
    assert caught.value.facts == {"output": "y", "worst": 2.0}
    assert "'y'" in str(caught.value.where)
    assert "(2,)" in str(caught.value.where)
    assert "1 of 3" in str(caught.value.found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_golden_outputs_that_are_not_finite_are_noticed(bad):
    with fake_session(golden([2, bad, 6], atol=1e9)) as session, pytest.raises(GoldenMismatchError):
        session.check_golden()


def test_without_golden_inputs_nothing_is_claimed():
    with fake_session() as session, pytest.raises(ArtifactError, match="no golden inputs"):
        session.check_golden()


def test_golden_inputs_survive_saving(backend, tmp_path):
    artifact = ei.compile(onnx.parser.parse_model(DYNAMIC), backend)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    artifact.with_golden({"x": x}, {"y": x * x}, rtol=1e-6, atol=0).save(tmp_path / "good.edge")
    artifact.with_golden({"x": x}, {"y": x * x + 1}, rtol=1e-6, atol=0).save(tmp_path / "bad.edge")
    with ei.load(tmp_path / "good.edge") as session:
        session.check_golden()
    with ei.load(tmp_path / "bad.edge") as session, pytest.raises(GoldenMismatchError, match="up to 1 "):
        session.check_golden()
