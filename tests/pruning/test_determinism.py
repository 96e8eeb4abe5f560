"""The digests of pruned models depend on the model and the data, not on cores, threads or BLAS kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, sys
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores[: int(sys.argv[1])])
sys.path.insert(0, sys.argv[2])
import graphs
import numpy as np
from edgeinfer.transforms import PruneChannels, PruneHeads, PruneNM, PruneWeights

rng = np.random.default_rng(0)
b = graphs.Builder(seed=5)
x = b.op("Relu", b.conv(b.input("x", ["N", 3, 8, 8]), 3, 16))
x = b.op("Add", x, b.conv(b.op("LeakyRelu", b.conv(x, 16, 24)), 24, 16))
x = b.conv(b.op("Sigmoid", b.conv(x, 16, 16, group=16)), 16, 24, 1)
x = b.op("ConvTranspose", x, b.weight(24, 8, 2, 2), b.weight(8), strides=[2, 2])
images = b.model(b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.weight(8, 5), b.weight(5)))
data = [{"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32)} for _ in range(10)]

b = graphs.Builder(seed=6)
x = b.input("x", ["N", 7, 12])
def project(order):
    y = b.op("Add", b.op("MatMul", x, b.weight(12, 12)), b.weight(12))
    return b.op("Transpose", b.op("Reshape", y, b.ints(0, 7, 4, 3)), perm=order)
q, k, v = project([0, 2, 1, 3]), project([0, 2, 3, 1]), project([0, 2, 1, 3])
mixed = b.op("MatMul", b.op("Softmax", b.op("MatMul", q, k), axis=-1), v)
back = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.ints(0, 7, 12))
heads = b.model(b.op("MatMul", back, b.weight(12, 12)))
rows = [{"x": rng.standard_normal((4, 7, 12)).astype(np.float32)} for _ in range(10)]

for transform, model in (
    (PruneChannels(0.6, calibration=data, multiple=8, measure=4), images),
    (PruneChannels(0.6, calibration=data, multiple=4, rounds=2, measure=0), images),
    (PruneNM(calibration=data), images),
    (PruneWeights(0.6, calibration=data), images),
    (PruneHeads(0.5, calibration=rows, measure=4), heads),
):
    result = transform.apply(model)
    assert result.report.modified
    print(type(transform).__name__, result.model.digest)
"""

VARIANTS = (
    ("1", {"OPENBLAS_NUM_THREADS": "1"}),
    ("2", {"OPENBLAS_NUM_THREADS": "2"}),
    ("2", {"OPENBLAS_CORETYPE": "Prescott"}),
)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind to cores")
def test_digests_do_not_depend_on_the_machine():
    here = str(Path(__file__).parent)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", CHILD, cores, here],
            env={**os.environ, **variant},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for cores, variant in VARIANTS
    }
    assert len(outputs) == 1, outputs
