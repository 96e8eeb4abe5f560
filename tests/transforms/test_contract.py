"""What holds for every transform that is exported here."""

from __future__ import annotations

import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgeinfer.transforms as transforms
from edgeinfer.model.model import Model
from edgeinfer.transforms import ConvertOpset, FixShapes, FuseBatchNorm, GraphTransform, Simplify, ToFloat16
from edgeinfer.transforms.contract import as_transform

NET = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 2, 6, 6] x) => (float[N, 3] y)
<float[3] gamma = {1.5, 0.5, -1}, float[3] beta = {0.1, 0.2, 0.3},
 float[3] mean = {0.4, -0.5, 0.6}, float[3] var = {0.5, 1.5, 2.5},
 float[3, 3] dense = {1, 2, 3, 4, 5, 6, 7, 8, 9},
 float one = {1}, int64[1] zero = {0}, int64[1] three = {3}>
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [norm] n = BatchNormalization (c, gamma, beta, mean, var)
    [noop] m = Mul (n, one)
    [relu] r = Relu (m)
    [pool] p = GlobalAveragePool (r)
    [shape] s = Concat <axis = 0> (zero, three)
    [flat] f = Reshape (p, s)
    [dense] g = MatMul (f, dense)
    [twice] h = Identity (g)
    [same] y = Softmax (h)
}
"""

# The bound on |a - b| / max|a|: nothing but rounding may change in float32; float16 has 11 bits.
CASES = [
    pytest.param(Simplify(), 1e-6, id="Simplify"),
    pytest.param(FuseBatchNorm(), 1e-5, id="FuseBatchNorm"),
    pytest.param(FixShapes({"N": 2}), 0.0, id="FixShapes-symbol"),
    pytest.param(FixShapes({"x": (2, 2, 6, 6)}), 0.0, id="FixShapes-input"),
    pytest.param(ToFloat16(), 5e-3, id="ToFloat16"),
    pytest.param(ToFloat16(keep_io=False), 5e-3, id="ToFloat16-io"),
    pytest.param(ConvertOpset(18), 1e-6, id="ConvertOpset"),
]


def net(opset: int = 13) -> Model:
    proto = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(1)
    for name, shape in (("w", (3, 2, 3, 3)), ("b", (3,))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.opset_import[0]
    proto.opset_import.add(version=opset)
    return Model.load(proto)


def test_every_transform_of_this_package_is_here() -> None:
    here = {type(case.values[0]) for case in CASES}
    exported = {
        value
        for value in (getattr(transforms, name) for name in transforms.__all__)
        if isinstance(value, type)
        and issubclass(value, GraphTransform)
        and not value.__subclasses__()
        and value.__module__.startswith("edgeinfer.transforms.")
    } - {GraphTransform}
    assert exported == here


@pytest.mark.parametrize("opset", [8, 13, 17])
@pytest.mark.parametrize(("transform", "bound"), CASES)
def test_contract(transform, bound, opset, run) -> None:
    model = net(opset)
    before = model.digest
    after, report = transform.apply(model)
    assert model.digest == before, "the model that was given is not changed"
    assert report.modified
    assert report.applied
    assert report.digest_before == before
    assert report.digest_after == after.digest != before
    onnx.checker.check_model(after.to_proto(), full_check=True)
    if not transform.changes_signature:
        assert after.signature == model.signature

    again, second = transform.apply(after)
    assert not second.modified
    assert not second.applied
    assert again.digest == after.digest

    x = np.random.default_rng(2).standard_normal((2, 2, 6, 6)).astype(np.float32)
    (expected,) = run(model, {"x": x})
    (found,) = run(after, {"x": x.astype(after.signature.inputs[0].dtype)})
    assert np.abs(expected - found).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize(("transform", "bound"), CASES)
def test_is_an_onnx_ir_pass(transform, bound) -> None:
    original = net()
    result = ir.passes.Sequential(transform)(original.copy_ir())
    assert result.modified
    assert Model.load(result.model).digest == transform.apply(original).model.digest
    assert bound >= 0


@pytest.mark.parametrize(("transform", "bound"), CASES)
def test_is_a_frozen_value(transform, bound) -> None:
    assert attrs.evolve(transform) == transform
    assert as_transform(transform) is transform
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        transform.extra = bound
