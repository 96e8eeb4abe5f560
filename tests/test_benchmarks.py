"""The list of benchmarks: each says what it measures, and the runner finds it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNNER = ROOT / "benchmarks" / "run.py"


def test_every_benchmark_is_listed_with_what_it_measures():
    done = subprocess.run([sys.executable, str(RUNNER)], capture_output=True, text=True, check=True)
    found = runpy.run_path(str(RUNNER))["benchmarks"]()
    assert {"soak", "fleet/ramp", "quantization/peers_table"} <= set(found)
    for name, what in found.items():
        assert len(what) > 20, name
        assert f"{name} " in done.stdout


def test_a_benchmark_is_run_by_its_name():
    command = [sys.executable, str(RUNNER), "bit_flips", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: bit_flips.py" in done.stdout
    done = subprocess.run([sys.executable, str(RUNNER), "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
