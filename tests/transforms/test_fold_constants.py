"""What is folded is exact and the same everywhere; what is random, or not agreed on, is not folded."""

from __future__ import annotations

import numpy as np
import pytest

from edgeinfer.graph.fold_constants import ConstantFolder
from edgeinfer.model.model import Model
from edgeinfer.transforms import PruneWeights, Simplify

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
P = "<float[8] p = {0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5}, float half = {0.5}, bool on = {1}>"
RANDOM = {
    "Bernoulli": "r = Bernoulli (p)",
    "Multinomial": "q = Multinomial <sample_size = 8> (rows)  s = Cast <to = 1> (q)  r = Squeeze (s)",
    "RandomNormal": "r = RandomNormal <shape = [8]> ()",
    "RandomUniform": "r = RandomUniform <shape = [8], seed = 1.0> ()",
    "RandomNormalLike": "r = RandomNormalLike (p)",
    "RandomUniformLike": "r = RandomUniformLike (p)",
    "Dropout": "r = Dropout (p, half, on)",
}


def operators(model: Model) -> list[str]:
    return sorted(node.op_type for node in model.ir.graph.all_nodes())


def random_model(kind: str, where: str, parse) -> Model:
    weights = P.replace("bool on", "float[1, 8] rows = {1,1,1,1,1,1,1,1}, bool on")
    body = RANDOM[kind]
    if where == "graph":
        return parse(f"{HEAD} g (float[N, 8] x) => (float[N, 8] y) {weights} {{ {body} y = Mul (x, r) }}")
    if where == "branch":
        return parse(f"""{HEAD} g (float[N, 8] x, bool c) => (float[N, 8] y) {weights} {{
            k = If (c) <then_branch = t () => (float[8] a) {{ {body} a = Abs (r) }},
                        else_branch = e () => (float[8] b) {{ b = Abs (p) }}>
            y = Mul (x, k) }}""")
    constants = """p = Constant <value = float[8] {0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5}> ()
        rows = Constant <value = float[1, 8] {1,1,1,1,1,1,1,1}> ()
        half = Constant <value = float {0.5}> ()  on = Constant <value = bool {1}> ()"""
    return parse(f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 8] x) => (float[N, 8] y) {{ y = local.noisy (x) }}
    <domain: "local", opset_import: ["" : 17]>
    noisy (v) => (w) {{ {constants} {body} w = Mul (v, r) }}""")


@pytest.mark.parametrize("where", ["graph", "branch", "function"])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_operators_are_never_folded(kind, where, parse) -> None:
    model = random_model(kind, where, parse)
    for transform in (Simplify(), Simplify(widen_weights=True), PruneWeights()):
        assert kind in operators(transform.apply(model).model) or model.ir.functions


@pytest.mark.parametrize("kind", RANDOM)
def test_two_draws_stay_two(kind, parse) -> None:
    body = RANDOM[kind]
    again = body.replace("r =", "r2 =").replace("q =", "q2 =").replace("s =", "s2 =")
    again = again.replace("(q)", "(q2)").replace("(s)", "(s2)")
    weights = P.replace("bool on", "float[1, 8] rows = {1,1,1,1,1,1,1,1}, bool on")
    nodes = f"{body} {again} d = Sub (r, r2) y = Mul (x, d)"
    model = parse(f"{HEAD} g (float[N, 8] x) => (float[N, 8] y) {weights} {{ {nodes} }}")
    assert operators(Simplify().apply(model).model).count(kind) == 2


def test_a_branch_that_is_always_taken_keeps_its_draws(parse) -> None:
    model = parse(f"""{HEAD} g (float[N, 8] x) => (float[N, 8] y) {P} {{
        k = If (on) <then_branch = t () => (float[8] a) {{ a = Bernoulli (p) }},
                     else_branch = e () => (float[8] b) {{ b = Abs (p) }}>
        y = Mul (x, k) }}""")
    assert operators(Simplify().apply(model).model) == ["Bernoulli", "Mul"]


def test_nodes_of_other_domains_are_not_merged(parse) -> None:
    model = parse("""<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
    g (float[N] x) => (float[N] y) { a = other.Draw (x)  b = other.Draw (x)  y = Sub (a, b) }""")
    assert operators(Simplify().apply(model).model) == ["Draw", "Draw", "Sub"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("<int64 a = {-7}, int64 b = {2}> { k = Div (a, b)", -3),  # toward zero
        ("<int64 a = {-7}, int64 b = {2}> { k = Mod (a, b)", 1),  # of the divisor's sign
        ("<int64 a = {-7}, int64 b = {2}> { k = Mod <fmod = 1> (a, b)", -1),
        ("<float a = {-7.9}> { k = Cast <to = 7> (a)", -7),
        ("<float a = {2.5}> { r = Round (a)  k = Cast <to = 7> (r)", 2),  # to even
    ],
)
def test_integers_are_those_of_the_specification(text, number, parse, run) -> None:
    model = parse(f"{HEAD} g (int64[N] x) => (int64[N] y) {text}  y = Add (x, k) }}")
    after = Simplify().apply(model).model
    assert operators(after) == ["Add"]
    x = np.zeros(1, np.int64)
    assert run(after, {"x": x})[0] == run(model, {"x": x})[0] == number


@pytest.mark.parametrize(
    "text",
    [
        "<int64 a = {7}, int64 b = {0}> { k = Div (a, b)",
        "<int64 a = {7}, int64 b = {0}> { k = Mod (a, b)",
        "<float a = {1e30}> { k = Cast <to = 7> (a)",
        "<float zero = {0}> { n = Div (zero, zero)  k = Cast <to = 7> (n)",
    ],
)
def test_what_runtimes_do_not_agree_on_stays(text, parse) -> None:
    model = parse(f"{HEAD} g (int64[N] x) => (int64[N] y) {text}  y = Add (x, k) }}")
    after, report = Simplify().apply(model)
    assert operators(after) != ["Add"]
    assert any("constants" in reason or "constant" in reason for _, reason in report.skipped)


def test_a_product_is_summed_in_the_order_of_the_inner_axis(parse) -> None:
    """Not as a BLAS library happens to do it, so that the digest is the same on every machine."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((3, 257)).astype(np.float32)
    right = rng.standard_normal((257, 4)).astype(np.float32)
    numbers = [", ".join(map(repr, map(float, array.ravel()))) for array in (left, right)]
    model = parse(
        f"{HEAD} g (float[3, 4] x) => (float[3, 4] y) <float[3, 257] a = {{{numbers[0]}}}, "
        f"float[257, 4] b = {{{numbers[1]}}}> {{ [k] k = MatMul (a, b)  y = Add (x, k) }}"
    )
    after = Simplify().apply(model).model
    (folded,) = after.ir.graph.initializers.values()
    total = np.zeros((3, 4))
    for k in range(257):
        total = total + left[:, k : k + 1].astype(np.float64) * right[k].astype(np.float64)
    np.testing.assert_array_equal(folded.const_value.numpy(), total.astype(np.float32))


def test_sums_of_float64_are_not_folded(parse) -> None:
    """Their last bit depends on the machine, and there is nothing wider to round from."""
    model = parse(
        f"{HEAD} g (double[1] x) => (double[1] y) <double[3] a = {{1, 2, 3}}> "
        "{ k = ReduceMean (a)  y = Add (x, k) }"
    )
    assert operators(Simplify().apply(model).model) == ["Add", "ReduceMean"]


def test_a_folder_leaves_the_signature_alone(parse) -> None:
    model = parse(HEAD + "g (float[2, 3] x) => (float[a, b] y) <int64[2] s = {3, 2}> { y = Reshape (x, s) }")
    work = model.copy_ir()
    ConstantFolder(lambda _: False)(work)
    assert Model(work).signature == model.signature


def test_statistics_that_a_runtime_updates_stay_apart(run) -> None:
    import onnx
    from onnx import helper, numpy_helper

    numbers = np.linspace(0.5, 1.5, 4).astype(np.float32)
    weights = [numpy_helper.from_array(numbers, name) for name in ("g", "b", "mean", "var")]
    outputs = ["n", "rm", "rv"]
    node = helper.make_node("BatchNormalization", ["x", "g", "b", "mean", "var"], outputs, training_mode=1)
    ends = [[helper.make_tensor_value_info(name, 1, ["N", 4, 3, 3])] for name in "xy"]
    nodes = [node, helper.make_node("Relu", ["n"], ["r"]), helper.make_node("Add", ["r", "n"], ["y"])]
    graph = helper.make_graph(nodes, "g", *ends, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(proto)
    model = Model.load(proto)
    after = Simplify().apply(model).model
    read = next(node for node in after.ir.graph if node.op_type == "BatchNormalization").inputs
    assert read[3] is not read[4]
    assert not {read[3], read[4]} & {read[1], read[2]}
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(after, {"x": x})[0], run(model, {"x": x})[0])


def test_an_empty_constant_in_a_concat(parse) -> None:
    model = parse(
        HEAD + "g (float[N, 3] x) => (float[N, 3] y) <float[0, 3] e = {}> { y = Concat <axis = 0> (x, e) }"
    )
    after = Simplify().apply(model).model
    assert after.signature == model.signature
