"""The one reader of the folder of real models that benchmarks share: `models/*.onnx`, `eval_baseline.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["DATA", "baselines"]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def baselines(data: Path = DATA) -> ModuleType:
    """Return `eval_baseline.py`: `TASKS[name]` is (task(run, subset), example feed).

    A task returns metrics of a function `run(feed, output names)`.
    """
    spec = importlib.util.spec_from_file_location("eval_baseline", data / "eval_baseline.py")
    if spec is None or spec.loader is None or not (data / "eval_baseline.py").is_file():
        raise SystemExit(f"no eval_baseline.py in {data}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
