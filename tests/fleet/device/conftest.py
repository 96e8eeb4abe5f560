"""Fixtures of the tests of a device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.device.kit import Shelf


@pytest.fixture(scope="session", autouse=True)
def _signing_is_possible() -> None:
    """Overrides that of the fleet's tests: here assignments are signed in Python, without `cryptography`."""


@pytest.fixture(scope="session")
def faulty_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the backend `faulty`, in this process and in its children."""
    folder = tmp_path_factory.mktemp("plugins")
    info = folder / "edgeinfer_faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edgeinfer-faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgeinfer.backends]\nfaulty = tests.fleet.device.faulty_backend:FaultyBackend\n"
    )
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "repo")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dev"
