"""`ConvertOpset`: bring a model to a version of the default operator set."""

from __future__ import annotations

from typing import final

import attrs
import onnx
import onnx_ir as ir

from edgeinfer.errors import TransformOptionError
from edgeinfer.graph.opset import convert_opset
from edgeinfer.model.checks import MIN_OPSET
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["ConvertOpset"]


def _in_range(_: object, __: object, version: object) -> None:
    newest = onnx.defs.onnx_opset_version()
    if isinstance(version, bool) or not isinstance(version, int) or not MIN_OPSET <= version <= newest:
        raise TransformOptionError(
            "There is no such opset.",
            where="ConvertOpset, version",
            expected=f"{MIN_OPSET} to {newest}",
            found=version,
            hint="Upgrade the onnx package for a newer one.",
        )


@final
@attrs.frozen
class ConvertOpset(GraphTransform):
    """Convert the model to an opset, by the ONNX version converter.

    Args:
        version: The opset to reach. An older one than the model's is tried, too; few operators can go back.
    """

    version: int = attrs.field(default=17, validator=_in_range)

    inlines_functions = False  # the conversion does it where it must

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Convert in place."""
        before = model.opset_imports.get("", 0)
        if before == self.version:
            report.skip("", f"the model is at opset {before} already")
            return
        weights = [v.name or "" for v in model.graph.inputs if v.name in model.graph.initializers]
        converted = convert_opset(model.clone(), self.version, wanted_by="ConvertOpset")
        model.graph = converted.graph  # the opset versions belong to it
        model.functions.clear()  # they were inlined
        model.ir_version = converted.ir_version
        report.apply("", f"converted from opset {before} to {self.version}")
        for name in weights:
            report.apply(name, "removed the weight from the inputs")
