"""Every backend that can run here passes the conformance suite that third parties run; broken ones do not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np
import pytest

from edgeinfer.testing import conformance, ownership_checks

NEEDS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "numpy-reference": "edgeinfer_numpy_plugin"}


@pytest.mark.parametrize("backend", NEEDS)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check, backend):
    if importlib.util.find_spec(NEEDS[backend]) is None:
        pytest.skip(f"{NEEDS[backend]} is not installed")
    check(backend)


# Faults that a third party's runner may have: what it makes of the feeds and the right outputs.

Fault = Callable[[Mapping[str, np.ndarray], Sequence[np.ndarray]], Sequence[np.ndarray]]


def returns_the_input(feeds, outputs):
    return [feeds["x"], *outputs[1:]]


def returns_one_array_twice(feeds, outputs):
    return [*outputs[:3], outputs[2]]


def writes_into_the_input(feeds, outputs):
    feeds["x"][...] = 0
    return outputs


class ReusesItsBuffers:
    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []

    def __call__(self, feeds, outputs):
        if not self.kept:
            self.kept = list(outputs)
        for mine, right in zip(self.kept, outputs, strict=True):
            mine[...] = right
        return self.kept


def returns_bytes(feeds, outputs):
    return [np.char.encode(a.astype(str), "utf-8") if a.dtype == object else a for a in outputs]


def returns_numpy_strings(feeds, outputs):
    return [a.astype(str) if a.dtype == object else a for a in outputs]


def computes_in_32_bits(feeds, outputs):
    return [a.astype(np.int32).astype(a.dtype) if a.dtype == np.int64 else a for a in outputs]


def returns_bytes_of_odd_dtypes(feeds, outputs):
    return [a.view(np.uint8) if a.dtype.itemsize == 1 and a.dtype.isbuiltin != 1 else a for a in outputs]


class ReturnsTheFirstOutput:
    def __init__(self) -> None:
        self.first: list[np.ndarray] = []

    def __call__(self, feeds, outputs):
        self.first = self.first or [a.copy() for a in outputs]
        return [a.copy() for a in self.first]


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ("check_aliases", lambda: returns_the_input),
        ("check_aliases", lambda: returns_one_array_twice),
        ("check_aliases", lambda: writes_into_the_input),
        ("check_arrays_that_are_filled_again", ReusesItsBuffers),
        ("check_strings", lambda: returns_bytes),
        ("check_strings", lambda: returns_numpy_strings),
        ("check_wide_integers", lambda: computes_in_32_bits),
        ("check_unusual_dtypes", lambda: returns_bytes_of_odd_dtypes),
        ("check_outputs_whose_shape_depends_on_data", ReturnsTheFirstOutput),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_runner_is_found(check, fault, monkeypatch):
    plugin = pytest.importorskip("edgeinfer_numpy_plugin")
    right = plugin.NumpyRunner.run
    broken: Fault = fault()
    monkeypatch.setattr(plugin.NumpyRunner, "run", lambda self, feeds, /: broken(feeds, right(self, feeds)))
    with pytest.raises(AssertionError):
        getattr(ownership_checks, check)("numpy-reference")


def test_a_runner_that_ignores_what_was_given_for_a_default_is_found(monkeypatch):
    plugin = pytest.importorskip("edgeinfer_numpy_plugin")
    right = plugin.NumpyRunner.run
    only_x = lambda self, feeds, /: right(self, {"x": feeds["x"]})  # noqa: E731
    monkeypatch.setattr(plugin.NumpyRunner, "run", only_x)
    monkeypatch.setattr(plugin.NumpyRunner, "takes_optional_inputs", True, raising=False)
    with pytest.raises(AssertionError):
        ownership_checks.check_default_inputs("numpy-reference")
    monkeypatch.setattr(plugin.NumpyRunner, "takes_optional_inputs", False)  # then the session refuses it
    ownership_checks.check_default_inputs("numpy-reference")


def test_a_runner_that_answers_after_a_failure_is_found(monkeypatch):
    plugin = pytest.importorskip("edgeinfer_numpy_plugin")
    right = plugin.NumpyRunner.run
    state: dict[str, object] = {}

    def run(self, feeds, /):
        """As a runtime that looks at shapes only when they change: then it gives the old output."""
        if feeds["shape"].tolist() == state.get("failed"):
            return [np.array(a) for a in state["last"]]
        try:
            state["last"] = right(self, feeds)
        except Exception:
            state["failed"] = feeds["shape"].tolist()
            raise
        return [np.array(a) for a in state["last"]]

    monkeypatch.setattr(plugin.NumpyRunner, "run", run)
    with pytest.raises(AssertionError):
        ownership_checks.check_failed_runs("numpy-reference")


@pytest.mark.parametrize("precisions", [[], ["float32", "fp16"]])
def test_precisions_have_the_words_of_the_library(precisions, monkeypatch):
    plugin = pytest.importorskip("edgeinfer_numpy_plugin")
    right = plugin.NumpyBackend.capabilities

    def capabilities(self):
        found = right(self)
        device = attrs.evolve(found.devices[0], precisions=precisions)
        return attrs.evolve(found, devices=(device,))

    monkeypatch.setattr(plugin.NumpyBackend, "capabilities", capabilities)
    with pytest.raises(AssertionError):
        conformance.check_capabilities("numpy-reference")
