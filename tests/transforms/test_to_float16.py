from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import edgeinfer as ei
from edgeinfer.errors import CalibrationError, PreconditionError
from edgeinfer.model.model import Model
from edgeinfer.transforms import Simplify, ToFloat16


def dtypes(model: Model) -> dict[str, str]:
    """The dtype of each node's first output, as the ONNX checker infers it."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model.to_proto(), check_type=True, strict_mode=True)
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)
    }
    return {n.name: ir.DataType(kinds[n.output[0]]).name for n in inferred.graph.node}


def chain(weight: str = "1, 2, 3, 4") -> str:
    return f"""<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {{{weight}}}>
    {{ [mm] m = MatMul (x, w)  [relu] r = Relu (m)  [sig] y = Sigmoid (r) }}"""


def test_inputs_and_outputs_stay_float32_by_default(parse) -> None:
    model = parse(chain())
    after, report = ToFloat16().apply(model)
    assert after.signature == model.signature
    assert [node.op_type for node in after.ir.graph] == ["Cast", "MatMul", "Relu", "Sigmoid", "Cast"]
    assert {entry.node for entry in report.applied} == {"mm", "relu", "sig"}
    assert after.nbytes == model.nbytes // 2


def test_inputs_and_outputs_in_float16(parse) -> None:
    after, _ = ToFloat16(keep_io=False).apply(parse(chain()))
    assert [node.op_type for node in after.ir.graph] == ["MatMul", "Relu", "Sigmoid"]
    assert after.signature.inputs[0].dtype == after.signature.outputs[0].dtype == np.float16


@pytest.mark.parametrize("keep", [{"keep_ops": ("Relu",)}, {"keep_float": ("relu",)}, {"keep_ops": "Relu"}])
def test_what_the_caller_keeps(parse, keep) -> None:
    after, report = ToFloat16(**keep).apply(parse(chain()))
    found = dtypes(after)
    assert (found["mm"], found["relu"]) == ("FLOAT16", "FLOAT")
    assert [entry.node for entry in report.skipped] == ["relu"]


def test_an_unknown_node_is_refused(parse) -> None:
    with pytest.raises(PreconditionError, match="no node"):
        ToFloat16(keep_float=("nope",)).apply(parse(chain()))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [("1, 2, 3, 70000", "holds 7e+04"), ("1e-9, 2e-9, -1e-9, 1e-9", "4 numbers so small")],
)
def test_weights_out_of_range_keep_their_node(parse, weight, reason) -> None:
    after, report = ToFloat16().apply(parse(chain(weight)))
    assert dtypes(after)["mm"] == "FLOAT"
    (skipped,) = report.skipped
    assert skipped.node == "mm"
    assert reason in skipped.reason


def test_a_few_dead_weights_are_noted(parse) -> None:
    after, report = ToFloat16().apply(parse(chain("1, 2, 3, 1e-12")))
    assert dtypes(after)["mm"] == "FLOAT16"
    assert report.notes == ("mm: 1 of 4 numbers of w become 0",)


def test_activations_out_of_range_keep_their_nodes(parse, run) -> None:
    model = parse(chain("1000, 0, 0, 1000"))
    feeds = [{"x": np.float32([[v, 1]])} for v in (1, 100, -3)]
    after, report = ToFloat16(calibration=feeds).apply(model)
    found = dtypes(after)
    assert (found["mm"], found["relu"]) == ("FLOAT", "FLOAT")
    assert [entry.node for entry in report.skipped] == ["mm", "relu", "sig"]  # sig reads what overflows
    assert "m reaches 1e+05" in {entry.node: entry.reason for entry in report.skipped}["mm"]
    np.testing.assert_allclose(run(after, feeds[1])[0], run(model, feeds[1])[0], rtol=1e-3)
    assert ToFloat16().apply(model).report.skipped == ()


def test_no_samples_is_an_error(parse) -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        ToFloat16(calibration=[]).apply(parse(chain()))


def test_one_weight_for_a_kept_and_a_converted_node_is_copied(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]>
    g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { [a] m = MatMul (x, w)  [b] y = MatMul (m, w) }""")
    after, _ = ToFloat16(keep_float=("b",)).apply(model)
    kinds = {name: value.const_value.dtype.name for name, value in after.ir.graph.initializers.items()}
    assert kinds == {"w": "FLOAT", "w_fp16": "FLOAT16"}
    x = np.float32([[1, 2], [3, 4]])
    np.testing.assert_array_equal(run(after, {"x": x})[0], run(model, {"x": x})[0])


def test_inputs_that_the_specification_wants_in_float32(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]>
    g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}>
    { [up] y = Resize <mode = "linear"> (x, , s) }""")
    after, _ = ToFloat16().apply(model)
    assert dtypes(after)["up"] == "FLOAT16"
    assert after.ir.graph.initializers["s"].const_value.dtype is ir.DataType.FLOAT
    x = np.float32([[[[1, 2], [3, 4]]]])
    np.testing.assert_allclose(run(after, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-3)


def test_unsafe_operators_and_what_lies_between_them(parse) -> None:
    after, report = ToFloat16().apply(
        parse("""<ir_version: 8, opset_import: ["" : 13]>
        g (float[2, 3] x) => (float[1, 3] y)
        { [relu] r = Relu (x)  [exp] e = Exp (r)  [turn] t = Transpose <perm = [1, 0]> (e)
          [sum] s = ReduceL2 <axes = [1]> (t)
          [back] b = Transpose <perm = [1, 0]> (s)  [last] y = Relu (b) }""")
    )
    found = dtypes(after)
    assert {name for name, kind in found.items() if kind == "FLOAT16" and "Cast" not in name} == {
        "relu",
        "back",
        "last",
    }
    assert [entry.node for entry in report.skipped] == ["exp", "turn", "sum"]


def test_quantization_is_left_alone(parse) -> None:
    after, report = ToFloat16().apply(
        parse("""<ir_version: 8, opset_import: ["" : 13]>
        g (float[2, 3] x) => (float[2, 3] y) <float s = {0.1}, int8 z = {0}>
        { [q] q = QuantizeLinear (x, s, z)  [d] d = DequantizeLinear (q, s, z)  [relu] y = Relu (d) }""")
    )
    assert [entry.node for entry in report.skipped] == ["q", "d"]
    assert after.ir.graph.initializers["s"].const_value.dtype is ir.DataType.FLOAT


def test_subgraphs_read_float32(parse, run) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]> g (bool c, float[1, 3] x) => (float[1, 3] y)
    { [relu] r = Relu (x)
      [if] f = If (c) <then_branch = t () => (float[1, 3] a) { a = Neg (r) },
                  else_branch = e () => (float[1, 3] b) { b = Abs (r) }>
      [sig] y = Sigmoid (f) }""")
    after, report = ToFloat16().apply(model)
    feed = {"c": np.array(True), "x": np.float32([[1, -2, 3]])}
    np.testing.assert_allclose(run(after, feed)[0], run(model, feed)[0], rtol=2e-3)
    assert {entry.node for entry in report.applied} == {"relu", "sig", "Neg_2", "Abs_3"}


def test_casts_do_not_pile_up(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] y) <float16[2] w = {1, 2}>
    { f = Cast <to = 1> (w)  a = Add (x, f)  h = Cast <to = 10> (a)  b = Cast <to = 1> (h)  y = Relu (b) }""")
    after, _ = ToFloat16().apply(model)
    assert [node.op_type for node in after.ir.graph] == ["Cast", "Add", "Relu", "Cast"]


@pytest.mark.data
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "name",
    ["cifar10_resnet20", "kws_dscnn", "mnist_cntk", "silero_vad_16k", "vww_mobilenetv1_025_96", "espcn_x3"],
)
def test_shared_models(name, backend, models, baselines, run, tmp_path) -> None:
    model = Model.load(models(name))
    after, _ = ToFloat16().apply(Simplify().apply(model).model)
    example = baselines.TASKS[name][1]
    rng = np.random.default_rng(0)
    feed = {key: rng.standard_normal(value.shape).astype(value.dtype) for key, value in example.items()}
    if backend == "onnxruntime":
        found = run(after, feed)
    else:
        openvino = pytest.importorskip("openvino")
        compiled = openvino.Core().compile_model(str(after.save(tmp_path / "m.onnx")), "CPU")
        found = [compiled(feed)[index] for index in range(len(after.signature.outputs))]
    for a, b in zip(run(model, feed), found, strict=True):
        a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


def test_sequences_stay_in_float32(parse) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 12]>
        joined (float[2,3] x) => (float[2,2,3] y) {
            changed = Relu(x)
            both = SequenceConstruct(changed, x)
            y = ConcatFromSequence<axis = 0, new_axis = 1>(both)
        }"""
    )
    after = ei.optimize(model, [Simplify(), ToFloat16()])
    assert sum("sequence" in entry.reason for entry in after.report.skipped) == 2
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with ei.load(ei.compile(after, "onnxruntime")) as session:
        np.testing.assert_array_equal(session.infer({"x": x})["y"], np.stack([x, x]))
