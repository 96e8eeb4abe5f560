"""The demonstration: a small digit classifier and held-out images that come with the package.

`edgeinfer demo` shows the whole way on it. `examples/train_digits.py` made the model.
"""

from __future__ import annotations

from edgeinfer.demo.data import Digits, load_digits, model_path
from edgeinfer.demo.run import DemoReport, DemoRow, run_demo

__all__ = ["DemoReport", "DemoRow", "Digits", "load_digits", "model_path", "run_demo"]
