"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os

# Before any test imports ONNX Runtime itself: the adapter does this for those who leave the import to it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that install packages, unless they are asked for."""
    if "venv" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("venv"):
                item.add_marker(pytest.mark.skip(reason="it installs packages; ask for it with -m venv"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and labelled data beside the checkout."""
    if not SHARED_DATA.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the shared data at {SHARED_DATA}")
        pytest.skip(f"no shared data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def models(shared_data: Path) -> Callable[[str], Path]:
    """The path of a shared model by its name without `.onnx`."""
    return lambda name: shared_data / "models" / f"{name}.onnx"


@pytest.fixture(scope="session")
def baselines(shared_data: Path) -> ModuleType:
    """`eval_baseline.py`: TASKS[name] is (task(run, subset), example feed)."""
    spec = importlib.util.spec_from_file_location("eval_baseline", shared_data / "eval_baseline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example_feed(example: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Random values where the example has floats; the example's own where it has integers."""
    rng = np.random.default_rng(seed)
    return {
        name: value if value.dtype.kind == "i" else rng.standard_normal(value.shape).astype(value.dtype)
        for name, value in example.items()
    }
