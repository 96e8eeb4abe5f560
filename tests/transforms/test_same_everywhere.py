"""Digests do not depend on the machine: not on its vector instructions, its BLAS kernel, nor its cores."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx.parser
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from edgeinfer.model.model import Model
from edgeinfer.transforms import (
    FuseBatchNorm,
    Pipeline,
    QuantizeDynamic,
    QuantizeWeights,
    Simplify,
    ToFloat16,
)

STEPS = {
    "simplify": (Simplify(),),
    "fuse": (Simplify(), FuseBatchNorm()),
    "half": (Simplify(), FuseBatchNorm(), ToFloat16()),
    "int8": (FuseBatchNorm(), QuantizeWeights(min_elements=0)),
    "int4": (QuantizeWeights(4, block_size=16, min_elements=0),),
    "dynamic": (QuantizeDynamic(min_elements=0, target="onnxruntime"),),
}


def net() -> Model:
    """A net with constant products, sums and functions, and a batch normalization."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 64, 8, 8] x) => (float[N, 64] y) {
        product = MatMul (a, b)
        grown = Exp (product)
        squashed = Tanh (grown)
        total = ReduceMean <axes = [0], keepdims = 1> (squashed)
        root = Sqrt (var)
        c = Conv (x, w)
        n = BatchNormalization (c, gamma, beta, mean, var)
        scaled = Mul (n, shaped)
        p = GlobalAveragePool (scaled)
        f = Flatten (p)
        g = Gemm (f, dense, total)
        y = Mul (g, root)
    }""")
    rng = np.random.default_rng(0)
    shapes = {
        "a": (50, 333), "b": (333, 64), "w": (64, 64, 1, 1), "gamma": (64,), "beta": (64,), "mean": (64,),
        "var": (64,), "shaped": (64, 1, 1), "dense": (64, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1])
        array = np.abs(array) + np.float32(0.5) if name == "var" else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Model.load(proto)


def digests() -> list[str]:
    return [Pipeline(steps).apply(net()).model.digest for steps in STEPS.values()]


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        {"OPENBLAS_CORETYPE": "Nehalem"},
        {"NPY_DISABLE_CPU_FEATURES": " ".join(f for f in __cpu_dispatch__ if __cpu_features__[f])},
        {"PYTHONHASHSEED": "17"},
    ],
    ids=lambda each: next(iter(each)),
)
def test_digests_are_those_of_any_other_machine(environment) -> None:
    code = "import sys; from tests.transforms.test_same_everywhere import digests; print(*digests())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert dict(zip(STEPS, done.stdout.split(), strict=True)) == dict(zip(STEPS, digests(), strict=True))
