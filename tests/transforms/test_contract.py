"""What holds for every transform that is exported, those of quantization and pruning included."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import attrs
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgeinfer as ei
import edgeinfer.transforms as transforms
from edgeinfer.errors import PreconditionError
from edgeinfer.graph.layer_like import layer_like
from edgeinfer.model.model import Model
from edgeinfer.transforms import GraphTransform, Pipeline, Transform
from edgeinfer.transforms.pipeline import as_transform

CONVOLUTIONS = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 4, 8, 8] x) => (float[N, 8] y)
<float one = {1}, int64[1] zero = {0}, int64[1] eight = {8}>
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [norm] n = BatchNormalization (c, gamma, beta, mean, var)
    [noop] m = Mul (n, one)
    [relu] r = Relu (m)
    [second] d = Conv <pads = [1, 1, 1, 1]> (r, v, u)
    [relu2] e = Relu (d)
    [pool] p = GlobalAveragePool (e)
    [shape] s = Concat <axis = 0> (zero, eight)
    [flat] f = Reshape (p, s)
    [dense] g = MatMul (f, z)
    [twice] h = Identity (g)
    [same] y = Softmax (h)
}
"""
ATTENTION = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 6, 16] x) => (float[N, 6, 16] y)
<int64[4] apart = {0, 0, 4, 4}, int64[3] together = {0, 0, 16}, float root = {2}>
{
    n = LayerNormalization (x, scale, shift)
    [q] q = MatMul (n, wq)
    [k] k = MatMul (n, wk)
    [v] v = MatMul (n, wv)
    q1 = Reshape (q, apart)
    k1 = Reshape (k, apart)
    v1 = Reshape (v, apart)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    scores = MatMul (q2, k2)
    scaled = Div (scores, root)
    weights = Softmax <axis = -1> (scaled)
    mixed = MatMul (weights, v2)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    joined = Reshape (back, together)
    [o] y = MatMul (joined, wo)
}
"""
# Layers where many transforms do not look: in branches and functions, and of operators without a recipe.
ODD = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
net (float[2, 3, 8] x, bool c) => (float[2, 3, 8] y)
{
    [einsum] e = Einsum <equation = "abc,cd->abd"> (x, w8)
    [gru] g, h = GRU <hidden_size = 8> (e, wg, rg)
    [up] u = ConvTranspose <group = 1> (e, wt)
    [down] d = Conv (u, wc)
    [called] f = local.block (d, w8)
    [if] i = If (c) <
        then_branch = one () => (float[2, 3, 8] a) { [inside] a = MatMul (f, w8) },
        else_branch = two () => (float[2, 3, 8] b) { [inside2] b = MatMul (f, w8) }>
    [last] y = MatMul (i, w8)
}
<domain: "local", opset_import: ["" : 17]>
block (p, q) => (r) { [within] r = MatMul (p, q) }
"""
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "convolutions": {
        "w": (8, 4, 3, 3), "b": (8,), "gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,),
        "v": (8, 8, 3, 3), "u": (8,), "z": (8, 8),
    },
    "attention": {"scale": (16,), "shift": (16,), **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))},
    "odd": {"w8": (8, 8), "wg": (1, 24, 8), "rg": (1, 24, 8), "wt": (3, 3, 1), "wc": (3, 3, 1)},
}  # fmt: skip
NETS = ("convolutions", "folded", "attention", "odd")
TEXTS = {"convolutions": CONVOLUTIONS, "attention": ATTENTION, "odd": ODD}


def net(name: str, opset: int | None = None) -> Model:
    proto = onnx.parser.parse_model(TEXTS[name])
    rng = np.random.default_rng(1)
    for weight, shape in SHAPES[name].items():
        array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1)
        array = np.abs(array) + 0.5 if weight in ("var", "gamma") else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), weight))
    if opset is not None:
        del proto.opset_import[0]
        proto.opset_import.add(version=opset)
    return Model.load(proto)


class Feeds(list):
    """Samples; failures of tests do not print them."""

    def __repr__(self) -> str:
        return "<feeds>"


def feeds(model: Model, count: int = 4) -> Feeds:
    rng = np.random.default_rng(2)
    spec = model.signature.inputs[0]
    shape = [2 if isinstance(dim, str) else dim for dim in spec.shape]
    extra = {"c": np.array(True)} if len(model.signature.inputs) > 1 else {}
    return Feeds({spec.name: rng.standard_normal(shape).astype(np.float32), **extra} for _ in range(count))


class Case(NamedTuple):
    """How to make a transform for a model, and how far its outputs may be off, relative to the greatest."""

    make: Callable[[Model], Any]
    bound: float | None  # None: it is not for keeping the outputs


def calibrated(cls: Any, **options: Any) -> Callable[[Model], Any]:
    return lambda model: cls(calibration=feeds(model), **options)


T = transforms
# The float models of quantized ones, by digest.
FLOAT: dict[str, Model] = {}
# Nothing but rounding may change in float32; float16 has 11 bits; integers have 8, which is 40 dB at best.
CASES = {
    "ConvertOpset": Case(lambda _: T.ConvertOpset(18), 1e-6),
    "CorrectBias": Case(lambda m: T.CorrectBias(calibration=feeds(m), reference=FLOAT.get(m.digest, m)), 0.2),
    "EqualizeActivations": Case(calibrated(T.EqualizeActivations), 1e-4),
    "EqualizeWeights": Case(lambda _: T.EqualizeWeights(), 1e-4),
    "FixShapes": Case(lambda m: T.FixShapes({"x": [2, *m.signature.inputs[0].shape[1:]]}), 0.0),
    "FuseBatchNorm": Case(lambda _: T.FuseBatchNorm(), 1e-5),
    "PruneChannels": Case(calibrated(T.PruneChannels, keep_macs=0.8, multiple=1), None),
    "PruneHeads": Case(calibrated(T.PruneHeads, keep=0.75), None),
    "PruneNM": Case(calibrated(T.PruneNM), None),
    "PruneWeights": Case(calibrated(T.PruneWeights, sparsity=0.5), None),
    "QuantizeDynamic": Case(lambda _: T.QuantizeDynamic(min_elements=0), 0.1),
    "QuantizeInt8": Case(calibrated(T.QuantizeInt8, target="openvino", measure=False), 0.3),
    "QuantizeStatic": Case(calibrated(T.QuantizeStatic, target="openvino"), 0.2),
    "QuantizeWeights": Case(lambda _: T.QuantizeWeights(min_elements=0), 0.05),
    "RetargetQDQ": Case(lambda _: T.RetargetQDQ("tensorrt"), 0.2),
    "RoundWeights": Case(calibrated(T.RoundWeights), 0.1),
    "Simplify": Case(lambda _: T.Simplify(), 1e-6),
    "SmoothQuant": Case(calibrated(T.SmoothQuant), 1e-4),
    "ToFloat16": Case(lambda _: T.ToFloat16(), 5e-3),
}
VARIANTS = {
    **CASES,
    "FixShapes-symbol": Case(lambda _: T.FixShapes({"N": 2}), 0.0),
    "ToFloat16-io": Case(lambda _: T.ToFloat16(keep_io=False), 5e-3),
    "QuantizeWeights-4": Case(lambda _: T.QuantizeWeights(4, block_size=16, min_elements=0), 0.3),
    "QuantizeWeights-ort": Case(lambda _: T.QuantizeWeights(target="onnxruntime", min_elements=0), 0.05),
}
# They change a graph that is quantized already.
AFTER_QUANTIZING = ("CorrectBias", "RetargetQDQ")


def given(name: str, net_name: str) -> Model:
    if net_name == "folded":
        model = Pipeline((T.Simplify(), T.FuseBatchNorm())).apply(net("convolutions")).model
    else:
        model = net(net_name)
    if name in AFTER_QUANTIZING and net_name != "odd":
        quantized = T.QuantizeStatic(calibration=feeds(model), target="openvino").apply(model).model
        FLOAT[quantized.digest] = model
        return quantized
    return model


def public_transforms() -> set[str]:
    classes = {name: getattr(transforms, name) for name in transforms.__all__}
    return {
        name
        for name, value in classes.items()
        if isinstance(value, type) and callable(getattr(value, "apply", None))
    } - {"GraphTransform", "Pipeline", "Transform", "ReportBuilder"}


def test_every_public_transform_is_here() -> None:
    assert public_transforms() == set(CASES)


@pytest.mark.parametrize("name", VARIANTS)
def test_contract(name: str, run) -> None:
    modified = []
    for net_name in NETS:
        model = given(name, net_name)
        transform = VARIANTS[name].make(model)
        # CorrectBias and RetargetQDQ want a quantized model, FixShapes the symbol.
        with contextlib.suppress(PreconditionError):
            modified.append(check_contract(transform, model, VARIANTS[name].bound, run))
    assert any(modified), "no net here is one that it changes"


def check_contract(transform: Any, model: Model, bound: float | None, run) -> bool:
    before = model.digest
    after, report = transform.apply(model)
    assert model.digest == before, "the model that was given is not changed"
    assert (report.digest_before, report.digest_after) == (before, after.digest)
    assert report.modified == (after.digest != before) == bool(report.applied)
    onnx.checker.check_model(after.to_proto(), full_check=True)
    if not getattr(transform, "changes_signature", False):
        assert after.signature == model.signature
    if getattr(transform, "names_layers", False):
        named = {entry.node for entry in (*report.applied, *report.skipped)}
        for layer in layer_like(model.ir):
            told = not layer.inside and layer.op_type in transform.reports_on
            assert layer.node in named or told or "function" in layer.inside
    if getattr(transform, "idempotent", True):
        again, second = transform.apply(after)
        assert not second.modified
        assert not second.applied
        assert again.digest == after.digest
    if report.modified:
        same_outputs(model, after, bound, run)
    assert len(json.dumps(report.to_dict())) < 100_000, "no weights and no samples are in it"
    assert len(str(report).splitlines()) <= 20
    return bool(report.modified)


def same_outputs(model: Model, after: Model, bound: float | None, run) -> None:
    for feed in feeds(model, 2):
        inputs = {s.name: feed[s.name].astype(s.dtype) for s in after.signature.inputs}
        for expected, found in zip(run(model, feed), run(after, inputs), strict=True):
            assert found.shape == expected.shape
            assert np.isfinite(found).all()
            if bound is not None:
                assert np.abs(expected - found).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("name", ["ConvertOpset", "FixShapes", "FuseBatchNorm", "Simplify", "ToFloat16"])
@pytest.mark.parametrize("opset", [8, 13, 17])
def test_the_float_rewrites_hold_it_at_every_opset(name: str, opset: int, run) -> None:
    model = net("convolutions", opset)
    assert check_contract(CASES[name].make(model), model, CASES[name].bound, run)


@pytest.mark.parametrize("name", CASES)
def test_is_an_onnx_ir_pass(name: str) -> None:
    model = given(name, "attention" if name in ("PruneHeads", "SmoothQuant") else "convolutions")
    transform = CASES[name].make(model)
    if not isinstance(transform, GraphTransform):
        pytest.skip(f"{name} is a Transform of its own kind")
    result = ir.passes.Sequential(transform)(model.copy_ir())
    expected = transform.apply(model)
    assert result.modified == expected.report.modified
    assert Model.load(result.model).digest == expected.model.digest


@pytest.mark.parametrize("name", CASES)
def test_is_a_frozen_value_and_a_transform(name: str) -> None:
    transform = CASES[name].make(net("convolutions"))
    assert isinstance(transform, Transform)
    assert as_transform(transform) is transform
    assert attrs.evolve(transform) == transform
    for field in attrs.fields(type(transform)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(transform, field.name, None)


@pytest.mark.parametrize("name", CASES)
def test_its_configuration_has_no_data_in_it(name: str) -> None:
    config = CASES[name].make(net("convolutions")).config()
    text = json.dumps(config)
    assert len(text) < 300
    assert "array" not in text


@pytest.mark.parametrize("name", CASES)
def test_the_history_has_it_when_it_changed_something(name: str) -> None:
    model = given(name, "convolutions")
    after, report = Pipeline((CASES[name].make(model),)).apply(model)
    entries = [entry.name for entry in after.history if entry not in model.history]
    assert entries[-1:] == ([name] if report.modified else [])
    assert ei.optimize(model, CASES[name].make(model)).digest == after.digest
