"""Whether a target's integer kernels overflow: found by running one matrix product, not by the CPU's name.

See `edgeinfer.numerics.pair_sums` for what overflows. The product has the greatest activations and weights,
so that a kernel that adds in 16 bits gives half of what is right.
"""

from __future__ import annotations

import functools
import platform

import numpy as np
import onnx_ir as ir

from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.graph.build import compile_model
from edgeinfer.model.model import Model
from edgeinfer.runtime.open import load

__all__ = ["adds_pairs_in_int16"]

_SIZE = 32  # inputs and outputs of the product
_X86 = frozenset({"amd64", "i386", "i686", "x86", "x86_64"})
_CPU = "CPU"
_TEXT = """<ir_version: 8, opset_import: ["": 13]>
pairs (float[1,32] x) => (float[1,32] y)
<float one = {1}, uint8 zero = {0}, float[32] ones = {%s}, int8[32] zeros = {%s}, int8[32,32] w = {%s}>
{ q = QuantizeLinear(x, one, zero)
  d = DequantizeLinear(q, one, zero)
  v = DequantizeLinear<axis = 1>(w, ones, zeros)
  y = MatMul(d, v) }"""


def adds_pairs_in_int16(target: Target) -> bool:
    """Return whether int8 weights must be kept small enough for a target, because its kernels overflow.

    A device profile is of another machine, so that this one tells nothing of it; no profile of the catalog is
    of such a CPU.
    """
    if target.profile is not None or platform.machine().lower() not in _X86:
        return False
    return _overflows(target.backend, target.device.upper())


@functools.cache
def _overflows(backend: str, device: str) -> bool:
    found = get_backend(backend).capabilities()
    default = found.devices[0].name.upper() if found.devices else ""
    if not found.available or found.dialect is None or (device or default) != _CPU:
        return False
    ones, zeros = ", ".join("1" * _SIZE), ", ".join("0" * _SIZE)
    weights = ", ".join(["127"] * _SIZE**2)
    model = Model.from_ir(ir.from_onnx_text(_TEXT % (ones, zeros, weights)))
    try:
        with load(compile_model(model, backend, device=device or None)) as session:
            (got,) = session.infer({"x": np.full((1, _SIZE), 255, np.float32)}).values()
    except EdgeInferError:
        return False  # it runs no such graph, so that none of it can overflow
    return bool(got.min() < 0.9 * _SIZE * 127 * 255)
