"""Fixtures of the fleet's tests."""

from __future__ import annotations

import importlib.util
import os

import onnx.parser
import pytest

import edgeinfer as ei

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }"""
# Signing needs it (extra `fleet`); without it, only what verifies can be tested.
HAS_CRYPTOGRAPHY = importlib.util.find_spec("cryptography") is not None


@pytest.fixture(scope="session", autouse=True)
def _signing_is_possible() -> None:
    if not HAS_CRYPTOGRAPHY:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs the package cryptography")
        pytest.skip("the package cryptography is not installed: pip install 'edgeinfer[fleet]'")


@pytest.fixture(scope="module")
def model():
    """A product with a fixed matrix."""
    return ei.Model.load(onnx.parser.parse_model(NET))


@pytest.fixture(scope="module")
def artifact(model):
    """It, for ONNX Runtime."""
    return ei.compile(model, "onnxruntime")


@pytest.fixture
def toy(tmp_path):
    """A fleet's folder with keys and a clock of its own."""
    from tests.fleet.toy_fleet import ToyFleet  # needs cryptography

    return ToyFleet(tmp_path)


@pytest.fixture
def fleet(toy):
    """The fleet of that folder, as operators open it."""
    return ei.fleet.open(toy.folder, passphrase=lambda _: None, clock=lambda: toy.now)
