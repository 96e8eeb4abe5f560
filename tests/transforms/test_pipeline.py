from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest

import edgeinfer as ei
from edgeinfer.errors import TransformContractError, TransformError
from edgeinfer.model.model import Model
from edgeinfer.transforms import FuseBatchNorm, GraphTransform, Pipeline, Simplify

TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float[2] a = {2, 3}>
{
    [id] i = Identity (x)
    [mm] m = MatMul (i, w)
    [scale] y = Mul (m, a)
    [dead] z = Relu (m)
}
"""


def model() -> Model:
    return Model.load(onnx.parser.parse_model(TEXT))


def test_onnx_ir_passes_and_nested_pipelines_compose() -> None:
    inner = Pipeline((common_passes.RemoveUnusedNodesPass(), Pipeline((FuseBatchNorm(),))))
    after, report = Pipeline((inner, Simplify())).apply(model())
    assert [node.op_type for node in after.ir.graph] == ["MatMul"]
    assert [step.name for step in report.steps] == ["RemoveUnusedNodesPass", "FuseBatchNorm", "Simplify"]
    assert [entry.name for entry in after.history] == ["RemoveUnusedNodesPass", "FuseBatchNorm", "Simplify"]


def test_history_chains_by_digest_and_survives_a_file(tmp_path) -> None:
    after, report = Pipeline((Simplify(), FuseBatchNorm())).apply(model())
    first, second = after.history
    assert first.digest_before == model().digest
    assert first.digest_after == second.digest_before
    assert second.digest_after == after.digest == report.digest_after
    assert Model.load(after.save(tmp_path / "m.onnx")).history == after.history


def test_a_step_that_does_nothing_leaves_no_history() -> None:
    once = Pipeline((Simplify(),)).apply(model()).model
    twice, report = Pipeline((Simplify(),)).apply(once)
    assert twice.history == once.history
    assert not report.modified


def test_ours_stand_in_a_sequential_with_theirs() -> None:
    sequence = ir.passes.Sequential(common_passes.RemoveUnusedNodesPass(), FuseBatchNorm(), Simplify())
    result = sequence(model().copy_ir())
    assert result.modified
    assert [node.op_type for node in result.model.graph] == ["MatMul"]


def test_optimize_keeps_the_users_metadata() -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.metadata_props.add(key="author", value="someone")
    after = ei.optimize(proto, [Simplify(), FuseBatchNorm()])
    assert after.metadata["author"] == "someone"
    assert len(after.history) == 2


def test_a_class_instead_of_a_value_is_refused() -> None:
    with pytest.raises(TransformError, match="parentheses"):
        Pipeline((Simplify,))


class Liar(GraphTransform):
    def rewrite(self, model, report) -> None:
        report.apply("x", "did it")


class Sneak(GraphTransform):
    def rewrite(self, model, report) -> None:
        model.graph[0].name = "other"


class Breaker(GraphTransform):
    def rewrite(self, model, report) -> None:
        model.graph[0].op_type = "NoSuchOperator"
        report.apply("x", "broke it")


@pytest.mark.parametrize(
    ("transform", "message"),
    [(Liar(), "but it did not"), (Sneak(), "did not say so"), (Breaker(), "invalid graph")],
)
def test_a_broken_contract_is_an_error(transform, message) -> None:
    with pytest.raises(TransformContractError, match=message):
        transform.apply(model())


def test_the_size_of_a_model_counts_constant_nodes() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] y) { k = Constant <value = float[2] {1, 2}> ()  y = Add (x, k) }
    """
    assert Model.load(onnx.parser.parse_model(text)).nbytes == 8
