"""`optimize` hands target and calibration down to transforms of any kind, or says why it cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs
import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.errors import TransformContractError, TransformError
from edgeinfer.transforms import Pipeline, ReportBuilder, TransformResult

FEEDS = [{"x": np.ones((1, 2), np.float32)}]


def net() -> ei.Model:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }'
    return ei.Model.load(onnx.parser.parse_model(text))


class Applies:
    """Says what it was given."""

    def apply(self, model):
        report = ReportBuilder()
        target = getattr(self, "target", getattr(self, "_target", None))
        calibration = getattr(self, "calibration", getattr(self, "_calibration", None))
        report.data.update(target=str(target), calibration=calibration)
        return TransformResult(model, report.finish("Plugin", model, model, 0.0))


class Plain(Applies):
    def __init__(self, target: Any = None, calibration: Any = None) -> None:
        self.target, self.calibration = target, calibration


class Private(Applies):
    def __init__(self, target: Any = None, calibration: Any = None) -> None:
        self._target, self._calibration = target, calibration


@dataclasses.dataclass(frozen=True)
class Frozen(Applies):
    target: Any = None
    calibration: Any = None


@attrs.frozen
class Attrs(Applies):
    target: Any = None
    calibration: Any = None


@attrs.frozen
class AttrsPrivate(Applies):
    _target: Any = None
    _calibration: Any = None


class Slots(Applies):
    __slots__ = ("calibration", "target")

    def __init__(self, target: Any = None, calibration: Any = None) -> None:
        self.target, self.calibration = target, calibration


KINDS = [Plain, Private, Frozen, Attrs, AttrsPrivate, Slots]


def data(transform: Any) -> dict[str, Any]:
    return ei.optimize(net(), transform, target="openvino", calibration=FEEDS).report.steps[0].data


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_handed_down(kind) -> None:
    transform = kind()
    for given in (transform, Pipeline((transform,))):
        assert data(given) == {"target": "openvino", "calibration": FEEDS}
    assert ei.optimize(net(), transform).report.steps[0].data["calibration"] is None, (
        "the original is unchanged"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_has_stays(kind) -> None:
    own = [{"x": np.zeros((1, 2), np.float32)}]
    assert data(kind("onnxruntime", own)) == {"target": "onnxruntime", "calibration": own}


def test_what_takes_none_is_left_alone() -> None:
    class Other(Applies):
        pass

    assert data(Other()) == {"target": "None", "calibration": None}


def test_what_cannot_be_given_is_an_error() -> None:
    class Locked(Applies):
        @property
        def calibration(self) -> None:
            return None

    with pytest.raises(TransformError, match="Locked takes a calibration") as caught:
        data(Locked())
    assert "constructor" in str(caught.value.hint)


def test_what_hides_whether_it_has_one_is_an_error() -> None:
    class Hidden(Applies):
        def __init__(self, calibration: Any = None) -> None:
            self.given = calibration

    with pytest.raises(TransformError, match="does not show whether it has one") as caught:
        data(Hidden())
    assert caught.value.expected == "an attribute 'calibration', None as long as there is none"
    assert ei.optimize(net(), Hidden()).report is not None


@pytest.mark.parametrize("answer", [None, "model", ("model", "report")])
def test_an_apply_that_gives_something_else_is_an_error(answer) -> None:
    class Odd:
        def apply(self, model):
            return answer

    with pytest.raises(TransformContractError, match="something else") as caught:
        ei.optimize(net(), Odd())
    assert caught.value.where == "Odd.apply"
