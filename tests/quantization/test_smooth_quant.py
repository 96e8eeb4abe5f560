"""How SmoothQuant shares the difficulty between activations and weights."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import onnx_ir as ir
import pytest

from edgeinfer.errors import TransformError
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.transforms import Pipeline, SmoothQuant

sys.path.insert(0, str(Path(__file__).parent))
from weight_models import feeds, make, run, sqnr_db

NET = """<ir_version: 8, opset_import: ["": 17]>
g (float[N, 32] x) => (float[N, 16] y) { y = MatMul(x, w) }"""


@pytest.mark.parametrize(("outliers", "weights"), [(50.0, 0.02), (50.0, 1.0), (1.0, 50.0)])
def test_alpha_is_found_by_the_expected_noise(outliers, weights):
    model = make(NET, w=(32, 16))
    # Two channels stand out, in the activations, in both, or in the weights.
    value = model.ir.graph.initializers["w"]
    array = value.const_value.numpy().copy()
    array[:2] *= weights
    value.const_value = ir.tensor(array, name="w")
    given = feeds(model, count=16)
    for feed in given:
        feed["x"][:, :2] *= outliers
    wanted = run(model, given)
    everything = attrs.evolve(dialect_of("onnxruntime"), costs=None)  # the net is too small to gain

    def closeness(alpha: float | None) -> float:
        steps = (
            SmoothQuant(calibration=given, alpha=alpha, insert=True),
            QuantizeStatic(calibration=given, target=everything, method="minmax"),
        )
        return sqnr_db(wanted, run(Pipeline(steps).apply(model).model, given))

    fixed = [closeness(alpha) for alpha in (0.2, 0.5, 0.8, 1.0)]
    assert max(fixed) < 60  # it runs in integers
    assert closeness(None) > max(fixed) - 1.0


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_beyond_its_bounds_is_refused(alpha):
    with pytest.raises(TransformError, match="alpha"):
        SmoothQuant(calibration=[], alpha=alpha)
