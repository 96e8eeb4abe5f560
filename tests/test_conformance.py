"""Every backend that can run here passes the conformance suite that third parties run."""

from __future__ import annotations

import importlib.util

import pytest

from edgeinfer.testing import conformance

NEEDS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "numpy-reference": "edgeinfer_numpy_plugin"}


@pytest.mark.parametrize("backend", NEEDS)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_conformance(check, backend):
    if importlib.util.find_spec(NEEDS[backend]) is None:
        pytest.skip(f"{NEEDS[backend]} is not installed")
    check(backend)
