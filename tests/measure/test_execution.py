"""`execution`: what ran, and what was asked for and not reached."""

from __future__ import annotations

import json

import attrs
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.backends.reports import ExecutionReport, LayerExecution
from edgeinfer.measure import execution, requested_but_not_reached
from edgeinfer.runtime.session import Session

LAYERS = (
    LayerExecution(name="conv_1", op_type="Convolution", device="CPU", precision="int8"),
    LayerExecution(name="conv_2", op_type="Convolution", device="CPU", precision="float32"),
    LayerExecution(name="soft", op_type="Softmax", device="CPU", precision="float32"),
    LayerExecution(name="mm", op_type="MatMul", device="CPU", precision="u8"),
)


class Explaining:
    """A runner that explains itself."""

    thread_safe = True

    def run(self, feeds, /):
        return []

    def close(self):
        pass

    def execution(self):
        return ExecutionReport(backend="toy", layers=LAYERS, notes=("a note",))


def session_with(*transforms: str) -> Session:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }"""
    )
    artifact: Artifact = ei.compile(model, "onnxruntime")
    history = tuple(HistoryEntry(name=name, digest_before="a", digest_after="b") for name in transforms)
    return Session(Explaining(), attrs.evolve(artifact.manifest, history=history))


def test_only_layers_that_do_the_work_can_miss():
    report = ExecutionReport(backend="toy", layers=LAYERS)
    assert [layer.name for layer in requested_but_not_reached(report, "int8")] == ["conv_2"]
    assert [layer.name for layer in requested_but_not_reached(report, "float16")] == [
        "conv_1",
        "conv_2",
        "mm",
    ]


@pytest.mark.parametrize(
    ("transforms", "requested", "missed"),
    [
        ((), None, 0),
        (("Simplify", "QuantizeStatic"), "int8", 1),
        (("QuantizeStatic", "ToFloat16"), "float16", 3),
    ],
)
def test_the_history_says_what_was_asked_for(transforms, requested, missed):
    found = execution(session_with(*transforms))
    assert found.requested == requested
    assert len(found.missed) == missed


def test_the_caller_may_ask_for_another_precision():
    assert execution(session_with(), requested="int8").missed[0].name == "conv_2"


def test_the_table_groups_and_names_what_was_missed():
    found = execution(session_with("QuantizeStatic"))
    text = str(found)
    assert "1 int8, 2 float32" in text
    assert "int8 was asked for and not reached by conv_2" in text
    assert "a note" in text
    assert found.devices == {"CPU": 4}
    assert json.loads(json.dumps(found.to_dict()))["missed"] == ["conv_2"]
    assert "<table" in found._repr_html_()
