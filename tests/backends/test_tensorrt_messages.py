"""Which node a message of TensorRT is about, over a fake TensorRT."""

from __future__ import annotations

from pathlib import Path

import attrs
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import edgeinfer as ei
from edgeinfer.backends.tensorrt_ import flavours as tensorrt_flavours
from edgeinfer.backends.tensorrt_.parse import build_error
from edgeinfer.errors import CompileError
from tests.backends import fake_tensorrt

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def build(
    text: str, *, device: str | None = None, cache: Path | None = None, **options: object
) -> ei.Artifact:
    model = onnx.parser.parse_model(text)
    return ei.compile(model, "tensorrt", device=device, options=options, cache_dir=cache)


def test_a_refusal_of_the_builder_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    model = onnx.parser.parse_model(
        HEAD + 'g (float[2,2] x) => (float[2,2] y) { y = Einsum<equation="ij->ji">(x) }'
    )
    for name in ("head/einsum.1", "/head/einsum/Einsum"):
        model.graph.node[0].name = name
        with pytest.raises(CompileError) as caught:
            ei.compile(model, "tensorrt")
        assert caught.value.where == f"node {name!r} (Einsum)"
        assert "no implementation of this operator" in str(caught.value)


NODE_NAMES = st.text(alphabet="/ab_.:-1", min_size=1, max_size=12).filter(lambda name: name.strip("/_.:-"))


@settings(deadline=None, max_examples=200)
@given(
    names=st.lists(NODE_NAMES, min_size=1, max_size=4, unique=True),
    which=st.integers(0, 3),
    text=st.sampled_from(
        [
            "Error Code 2: Internal Error (Assertion !layerImpls.empty() failed. {}_0 has no runners",
            "Could not find any implementation for node {}.",
            "Error Code 10: ({} + (Unnamed Layer* 3) [Shuffle] has no runners)",
            "{}: kernel weights has count 5 but 6 was expected",
            "[{}]",
            "{}",
        ]
    ),
)
def test_a_message_is_about_the_node_that_it_names(names: list[str], which: int, text: str) -> None:
    named = names[which % len(names)]
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=name) for i, name in enumerate(names)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(f"v{len(names)}", TensorProto.FLOAT, [1])],
    )
    loaded = ei.Model.load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    flavour = attrs.evolve(tensorrt_flavours.TABLE[-1], version="1.7")
    error = build_error(flavour, loaded, [text.format(named)])
    assert error.where is not None
    found = error.facts["errors"][0]["node"]
    # Another node may have a longer name that is there, too: `a` and `a_0`.
    assert found == named or (len(found) > len(named) and found in text.format(named))


@pytest.mark.parametrize("text", ["no node is named here", "a.b failed", "xa/b", "/a/bc", "z/a/b"])
def test_a_message_that_names_no_node_is_about_none(text: str) -> None:
    model = onnx.parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { h = Relu(x)\n y = Neg(h) }")
    model.graph.node[0].name, model.graph.node[1].name = "a", "/a/b"
    flavour = attrs.evolve(tensorrt_flavours.TABLE[-1], version="1.7")
    assert build_error(flavour, ei.Model.load(model), [text]).where is None


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.1"])
def test_nodes_within_others_are_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Version 8 tells the position alone, which counts within each graph: better no name than a wrong one."""
    fake_tensorrt.install(monkeypatch, version)
    inner = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"], name="/if/Relu"),
            helper.make_node("Det", ["h"], ["o"], name="/if/Det"),
        ],
        "inner",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [])],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["unused"], name="first"),
        helper.make_node("If", ["b"], ["y"], name="/model/If", then_branch=inner, else_branch=inner),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
            helper.make_tensor_value_info("b", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(CompileError) as caught:
        ei.compile(model, "tensorrt")
    assert caught.value.where == ("node '/if/Det' (Det)" if version.startswith("11") else None)


@pytest.mark.parametrize(("version", "first"), [("8.5.3.1", "edgeinfer_unused_0_0"), ("11.4.0.1", "")])
def test_version_8_gets_names_for_outputs_that_are_left_out(
    monkeypatch: pytest.MonkeyPatch, version: str, first: str
) -> None:
    fake = fake_tensorrt.install(monkeypatch, version)
    build(
        HEAD
        + "g (float[1,1,2] x, float[1,4,2] w, float[1,4,1] r, float[1,1,1] c) => (float[1,1,1] y) "
        '{ , h = LSTM<hidden_size=1>(x, w, r, "", "", "", c)\n y = Relu(h) }'.replace('""', "")
    )
    node = fake.builds[-1].network.model.graph.node[0]
    assert node.output[0] == first
    assert node.output[1] == "h"


def test_version_8_names_nodes_by_their_position(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "8.5.2")
    model = onnx.parser.parse_model(HEAD + "g (float[2,2] x) => (float y) { h = Relu(x)\n y = Det(h) }")
    model.graph.node[1].name = "det"
    with pytest.raises(CompileError, match=r"node 'det' \(Det\)"):
        ei.compile(model, "tensorrt")
