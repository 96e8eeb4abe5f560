"""Options are checked when a transform is made, and unknown names are errors that name what is near."""

from __future__ import annotations

import inspect

import attrs
import numpy as np
import onnx.parser
import pytest

import edgeinfer.transforms as transforms
from edgeinfer.errors import EdgeInferError, PreconditionError, TransformError, TransformOptionError
from edgeinfer.model.model import Model
from edgeinfer.transforms import (
    ConvertOpset,
    FixShapes,
    GraphTransform,
    PruneNM,
    QuantizeStatic,
    QuantizeWeights,
    Simplify,
    SmoothQuant,
    ToFloat16,
)

PUBLIC = [
    value
    for value in (getattr(transforms, name) for name in transforms.__all__)
    if isinstance(value, type) and issubclass(value, GraphTransform) and value is not GraphTransform
]
CHECKED = ("bool", "int", "float", "str", "tuple[str, ...]", "Collection[str]")


def net() -> Model:
    return Model.load(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { [encoder_dense] h = MatMul (x, w)  [encoder_relu] y = Relu (h) }""")
    )


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (cls, field.name)
        for cls in PUBLIC
        for field in attrs.fields(cls)
        if field.init and set(str(field.type).split(" | ")) <= {*CHECKED, "None"}
    ],
)
def test_a_value_of_another_type_is_refused_at_once(cls, field) -> None:
    with pytest.raises(TransformOptionError) as caught:
        cls(**{field: object()})
    assert cls.__name__ in str(caught.value)


@pytest.mark.parametrize("cls", PUBLIC)
def test_an_unknown_option_is_refused_with_what_is_near(cls) -> None:
    names = list(inspect.signature(cls).parameters)
    with pytest.raises(TransformOptionError, match="has no option") as caught:
        cls(**{f"{names[0]}x" if names else "anything": 1})
    if names:
        assert repr(names[0]) in str(caught.value.hint)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: QuantizeWeights(bits=3), "QuantizeWeights, bits"),
        (lambda: QuantizeWeights(block_size=24), "QuantizeWeights"),
        (lambda: QuantizeWeights(min_elements=-1), "QuantizeWeights, min_elements"),
        (lambda: QuantizeWeights(4, dtype="float8e4m3fn"), "QuantizeWeights"),
        (lambda: ConvertOpset("17"), "ConvertOpset, version"),
        (lambda: ConvertOpset(True), "ConvertOpset, version"),
        (lambda: ConvertOpset(3), "ConvertOpset, version"),
        (lambda: FixShapes(5), "FixShapes"),
        (lambda: FixShapes({"N": 1.5}), "FixShapes"),
        (lambda: FixShapes({"N": "4"}), "FixShapes"),
        (lambda: FixShapes({"x": (1, 2.5)}), "FixShapes"),
        (lambda: Simplify("yes"), "Simplify, widen_weights"),
        (lambda: ToFloat16(keep_ops=[3]), "ToFloat16"),
        (lambda: ToFloat16(keep_io=None), "ToFloat16, keep_io"),
        (lambda: PruneNM(n="two"), "PruneNM, n"),
    ],
)
def test_the_error_says_where(make, where) -> None:
    with pytest.raises(TransformError) as caught:
        make()
    assert isinstance(caught.value, ValueError), "and is one that callers of constructors expect"
    assert caught.value.where == where


def test_plain_numbers_of_numpy_are_numbers() -> None:
    assert FixShapes({"x": np.array([1, 2])}).shapes == {"x": (1, 2)}
    assert QuantizeWeights(min_elements=np.int64(3)).min_elements == 3


def test_a_signature_is_there_to_be_read() -> None:
    assert list(inspect.signature(QuantizeWeights).parameters) == [
        "bits", "block_size", "dtype", "target", "min_elements",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "transform",
    [
        ToFloat16(keep_float=("encoder_dens",)),
        QuantizeStatic(calibration=[], keep_float=("encoder_dens",)),
        QuantizeStatic(calibration=[], keep_float="encoder_dens"),
        SmoothQuant(calibration=[], keep_float=("encoder_dens",)),
    ],
    ids=str,
)
def test_an_unknown_node_is_an_error_that_names_what_is_near(transform) -> None:
    with pytest.raises(PreconditionError, match="no node") as caught:
        transform.apply(net())
    assert caught.value.found == "encoder_dens"
    assert "'encoder_dense'" in str(caught.value.hint)


def test_an_unknown_operator_is_an_error_that_names_what_is_near() -> None:
    with pytest.raises(PreconditionError, match="no such operator") as caught:
        ToFloat16(keep_ops="Softmaxx").apply(net())
    assert "'Softmax'" in str(caught.value.hint)
    assert ToFloat16(keep_ops="Softmax").apply(net()).report.modified, "the model need not have it"


def test_evolve_checks_too() -> None:
    with pytest.raises(EdgeInferError):
        attrs.evolve(QuantizeWeights(), bits=5)
