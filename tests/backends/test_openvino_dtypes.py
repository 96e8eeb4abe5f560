"""Dtypes that OpenVINO computes in fewer bits than the graph says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import (
    CompileError,
    InputError,
)

pytest.importorskip("openvino")
HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def session(text: str, **options: object) -> ei.Session:
    return ei.load(ei.compile(model(text), "openvino", options=options))


def test_integers_beyond_32_bits_are_refused_as_inputs():
    text = HEADER + "i (int64[N] x) => (int64[N] y) { y = Add(x, x) }"
    edge = np.array([2**31 - 1, -(2**31), 0])
    with session(text) as loaded:
        for good in (np.array([1, -1]), np.empty(0, np.int64)):
            np.testing.assert_array_equal(loaded.infer(good)["y"], good * 2)
        assert loaded.infer(edge)["y"].dtype == np.int64
        for bad in ([2**31], [-(2**31) - 1], [0, 2**40 + 1]):
            with pytest.raises(InputError, match="32 bits") as caught:
                loaded.infer(np.array(bad))
            assert "onnxruntime" in str(caught.value.hint)
        assert any("int32" in note for note in loaded.execution().notes)
        with loaded.bind({"x": (1,)}) as bound:
            bound.inputs["x"][...] = 2**40
            with pytest.raises(InputError, match="32 bits"):
                bound.run()
            bound.inputs["x"][...] = 21
            bound.run()
            assert bound.outputs["y"].tolist() == [42]


@pytest.mark.parametrize(
    ("body", "kind", "refused"),
    [
        ("{ y = Add(x, c) }", "int64[1] c = {1099511627776}", True),
        ("{ y = Identity(c) z = Add(x, x) }", "int64[1] c = {1099511627776}", True),
        ("{ y = Add(x, c) }", "int64[1] c = {2147483647}", False),
        # What exporters write for "to the end" and "no limit".
        (
            "{ a = Slice(x, o, c) y = Identity(a) }",
            "int64[1] c = {9223372036854775807}, int64[1] o = {0}",
            False,
        ),
        ("{ y = Min(x, c) }", "int64[1] c = {9223372036854775807}", False),
    ],
)
def test_integer_constants_beyond_32_bits(body, kind, refused):
    text = HEADER + f"c (int64[1] x) => (int64[1] y) <{kind}> {body}"
    if refused:
        with pytest.raises(CompileError, match="32 bits"):
            session(text)
        return
    x = np.array([7])
    with session(text) as loaded, ei.load(ei.compile(model(text), "onnxruntime")) as exact:
        if "2147483647}" not in kind:
            np.testing.assert_array_equal(loaded.infer(x)["y"], exact.infer(x)["y"])


BRANCHES = (
    "then_branch = t () => (double[2] a) { a = Add(x, x) }, "
    "else_branch = e () => (double[2] b) { b = Mul(x, x) }"
)
FLOAT64 = [
    ("(double[2] x) => (double[2] y)", "{ y = Add(x, x) }", True),
    ("(float[2] x) => (float[2] y)", "{ d = Cast<to = 11>(x) e = Sqrt(d) y = Cast<to = 1>(e) }", True),
    ("(double[2] x, bool c) => (double[2] y)", "{ y = If(c) <" + BRANCHES + "> }", True),
    ("(double[2] x) => (float[2] y)", "{ f = Cast<to = 1>(x) y = Add(f, f) }", False),
    ("(float[2] x) => (double[2] y)", "{ f = Add(x, x) y = Cast<to = 11>(f) }", False),
    ("(double[2] x) => (double[2] y)", "{ y = Identity(x) }", False),
]  # fmt: skip


@pytest.mark.parametrize(("ports", "body", "refused"), FLOAT64)
def test_float64_is_refused_where_it_is_computed_in(ports, body, refused):
    text = HEADER + f"d {ports} {body}"
    if refused:
        with pytest.raises(CompileError, match="float64") as caught:
            session(text)
        assert "allow_float64_as_float32" in str(caught.value.hint)
        with session(text, allow_float64_as_float32=True) as loaded:
            assert any("float64" in note for note in loaded.execution().notes)
        return
    with session(text) as loaded:
        spec = loaded.signature.inputs[0]
        x = np.array([0.5, 3]).astype(spec.dtype)
        found = loaded.infer(x)["y"]
        assert found.dtype == loaded.signature.outputs[0].dtype
        np.testing.assert_array_equal(found, x * (1 if "Identity" in body else 2))


def test_a_float64_constant_that_is_an_output_is_exact_or_refused():
    text = (
        HEADER
        + "k (float[1] x) => (double[1] k, float[1] y) <double[1] c = {%s}> { k = Identity(c) y = Abs(x) }"
    )
    with session(text % "0.5") as loaded:
        assert loaded.infer(np.ones(1, np.float32))["k"].tolist() == [0.5]
    with pytest.raises(CompileError, match="float64"):
        session(text % "0.1")


@pytest.mark.parametrize("shape", [(5,), (300, 300)])
def test_bfloat16_outputs_are_rounded(shape):
    # Without bfloat16 hardware OpenVINO cuts the bits off.
    dims = ", ".join(map(str, shape))
    text = HEADER + f"b (float[{dims}] x) => (bfloat16[{dims}] y) {{ y = Cast<to = 16>(x) }}"
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with session(text) as loaded:
        found = loaded.infer(x)["y"]
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, x.astype(ml_dtypes.bfloat16))
        with loaded.bind() as bound:
            bound.inputs["x"][...] = x
            bound.run()
            np.testing.assert_array_equal(bound.outputs["y"], x.astype(ml_dtypes.bfloat16))


def test_float8_that_openvino_has_no_kernel_for_is_refused():
    text = (
        '<ir_version: 10, opset_import: ["": 21]> f (float8e5m2[N] x) => (bool[N] y) { y = Cast<to = 9>(x) }'
    )
    with pytest.raises(CompileError, match="float8"):
        session(text)
