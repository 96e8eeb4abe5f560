"""The history, in models and in artifacts, never holds data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer import transforms
from edgeinfer.artifact.manifest import encode_manifest
from edgeinfer.devices.profile import Target
from edgeinfer.model.plain_config import plain_config
from edgeinfer.transforms import FixShapes, GraphTransform, QuantizeStatic, Simplify, ToFloat16
from edgeinfer.transforms.contract import TransformReport, TransformResult

MARK = 0.123456789
TEXT = str(MARK)[2:8]  # whatever it is rounded to
NET = """<ir_version: 10, opset_import: ["": 21]>
g (float[N, 3] x) => (float[N, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
    h = MatMul(x, w)
    y = Relu(h)
}"""


class Samples:
    """A data set that shows its values, as tensors of other libraries do."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        yield {"x": np.full((1, 3), MARK, np.float32)}

    def __repr__(self) -> str:
        return f"Samples([{MARK}])"

    __str__ = __repr__


FORMS: dict[str, Callable[[Path], Any]] = {
    "feeds": lambda _: [{"x": np.full((1, 3), MARK, np.float32)}],
    "one feed": lambda _: {"x": np.full((1, 3), MARK, np.float32)},
    "arrays": lambda _: [np.full((1, 3), MARK, np.float32)] * 3,
    "an array": lambda _: np.full((1, 3), MARK),
    "lists": lambda _: [[[MARK, MARK, MARK]]],
    "numbers": lambda _: (MARK, np.float32(MARK)),
    "pairs": lambda _: [(np.full((1, 3), MARK, np.float32), 1)],
    "a data set": lambda _: Samples(),
    "a function": lambda _: lambda: iter(Samples()),
    "text": lambda _: f"[{MARK}]",
}


def classes() -> list[type[GraphTransform]]:
    found = [getattr(transforms, name) for name in transforms.__all__]
    return [c for c in found if isinstance(c, type) and attrs.has(c) and hasattr(c, "config")]


def test_there_are_transforms_with_data():
    with_data = [c for c in classes() if any(not field.eq for field in attrs.fields(c))]
    assert len(classes()) >= 15
    assert len(with_data) >= 9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_no_configuration_holds_data(cls, form, tmp_path):
    data = FORMS[form](tmp_path)
    required: dict[str, Any] = {"target": "openvino"} if cls is transforms.RetargetQDQ else {}
    if cls is transforms.QuantizeInt8:
        required = {"max_drop": 0.5, "evaluate": len}
    fields = [field.name for field in attrs.fields(cls) if not field.eq or field.name == "calibration"]
    fields = [name for name in fields if name != "progress"]  # a bool, which is checked
    for name in fields:
        try:
            config = cls(**{**required, name: data}).config()
        except ei.EdgeInferError:
            assert form == "text"  # the path of a folder that is not there: nothing is made of it
            continue
        text = json.dumps(config)
        assert TEXT not in text
        assert len(text) < 300


@pytest.mark.parametrize("form", ["feeds", "arrays", "an array", "lists", "a data set", "a function"])
@pytest.mark.parametrize(
    "transform", [QuantizeStatic, transforms.CorrectBias, ToFloat16], ids=lambda c: c.__name__
)
def test_neither_models_nor_artifacts_hold_data(transform, form, tmp_path):
    data = FORMS[form](tmp_path)
    if transform is ToFloat16:
        data = [{"x": np.full((1, 3), MARK, np.float32)}]
    elif form == "lists":
        data = [np.array(sample, np.float32) for sample in data]
    elif form == "an array":
        data = [data.astype(np.float32)]
    more = {"target": "tensorrt"} if transform is QuantizeStatic else {}
    steps = [transform(calibration=data, **more)]
    if transform is transforms.CorrectBias:
        steps = [
            QuantizeStatic(calibration=data, target="tensorrt"),
            transform(calibration=data, reference=ei.Model.load(parsed())),
        ]
    model = ei.optimize(parsed(), steps)
    assert model.history
    for entry in model.history:
        assert TEXT not in json.dumps(attrs.asdict(entry))
        assert len(json.dumps(attrs.asdict(entry))) < 1000
    manifest = ei.compile(model, "onnxruntime").manifest
    assert TEXT not in encode_manifest(manifest).decode()


def parsed() -> onnx.ModelProto:
    return onnx.parser.parse_model(NET)


@attrs.frozen
class Theirs:
    """A third party's transform, whose report says whatever it likes."""

    config: Any

    def apply(self, model: ei.Model, /) -> TransformResult:
        after, report = Simplify().apply(model)
        return TransformResult(
            after, attrs.evolve(report, config=self.config, modified=True, applied=[("a", "b")])
        )


@pytest.mark.parametrize("form", FORMS)
def test_the_reports_of_others_are_held_to_it(form, tmp_path):
    data = FORMS[form](tmp_path)
    configs = [{"calibration": data}]
    if form not in ("text", "numbers", "lists"):  # a few plain numbers may be settings, under another name
        configs.append({"settings": data, "inner": {"calibration_data": [data]}})
    for config in configs:
        model = ei.optimize(parsed(), [Theirs(config)])
        assert TEXT not in json.dumps(attrs.asdict(model.history[-1]))
        assert isinstance(model.report, TransformReport)


def test_what_a_configuration_says():
    config = {
        "name": "mse", "alpha": 0.5, "bits": np.int64(8), "flag": True, "none": None, "names": ["a"] * 200,
        "shape": {"x": (1, 3, 224, 224)}, "set": {"b", "a"},
        "target": Target(backend="openvino", device="GPU"),
        "path": Path("/data/photos"), "array": np.zeros((2, 3), np.float32), "many": list(range(65)),
        "few": list(range(64)), "object": object(), "function": len, "calibration": [1, 2, 3],
    }  # fmt: skip
    assert plain_config(config) == {
        "name": "mse", "alpha": 0.5, "bits": 8, "flag": True, "none": None, "names": ["a"] * 200,
        "shape": {"x": [1, 3, 224, 224]}, "set": ["a", "b"], "target": "openvino:GPU",
        "path": "/data/photos", "array": "<float32 array (2, 3)>", "many": "<list of 65>",
        "few": list(range(64)), "object": "<object>", "function": "<builtin_function_or_method>",
        "calibration": "<list of 3>",
    }  # fmt: skip


def test_configurations_that_are_kept():
    assert FixShapes({"x": (1, 3, 224, 224)}).config() == {"shapes": {"x": [1, 3, 224, 224]}}
    assert QuantizeStatic(keep_float={"b", "a"}, target="openvino", method="minmax").config() == {
        "keep_float": ["a", "b"],
        "target": "openvino",
        "method": "minmax",
    }
    given = QuantizeStatic(calibration=[1, 2], ranges={"x": (0.0, MARK)}).config()
    assert given == {"calibration": "<list of 2>", "ranges": "<dict of 1>"}


@given(
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3),
            st.builds(lambda n: np.full(n, MARK), st.integers(0, 3)), st.builds(object),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4),
            st.tuples(inner, inner),
        ),
    )
)  # fmt: skip
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_configuration_is_json_without_arrays(value):
    text = json.dumps(plain_config({"value": value}))
    assert TEXT not in text
    assert sum(character.isdigit() for character in text) < 20_000


def test_notes_do_not_tell_values_of_the_data():
    proto = onnx.parser.parse_model(NET.replace("MatMul(x, w)", "Add(x, x)"))
    feeds = [{"x": np.full((1, 3), MARK, np.float32)}] * 3
    model = ei.optimize(proto, [QuantizeStatic(calibration=feeds), ToFloat16(calibration=feeds)])
    assert TEXT not in json.dumps([attrs.asdict(entry) for entry in model.history])
