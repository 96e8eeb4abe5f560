"""Fixtures of the fleet's tests."""

from __future__ import annotations

import importlib.util
import os

import pytest

# Signing needs it (extra `fleet`); without it, only what verifies can be tested.
HAS_CRYPTOGRAPHY = importlib.util.find_spec("cryptography") is not None


@pytest.fixture(scope="session", autouse=True)
def _signing_is_possible() -> None:
    if not HAS_CRYPTOGRAPHY:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs the package cryptography")
        pytest.skip("the package cryptography is not installed: pip install 'edgeinfer[fleet]'")
