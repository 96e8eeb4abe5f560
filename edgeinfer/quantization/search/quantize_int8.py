"""Quantization under control: close to float, within a tolerance, and never slower than float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import attrs
import onnx_ir as ir

from edgeinfer.calibration.kept_feeds import DEFAULT_KEPT_BYTES
from edgeinfer.calibration.observers import METHODS
from edgeinfer.devices.profile import Target
from edgeinfer.display import Steps
from edgeinfer.errors import CalibrationError, TransformOptionError
from edgeinfer.measure.speedup import Stopwatch
from edgeinfer.model.model import Model
from edgeinfer.quantization.qdq.marks import quantized_for, refuse_quantized
from edgeinfer.quantization.search.effort import EFFORTS, Effort
from edgeinfer.quantization.search.int8_search import Int8Search, SearchOptions
from edgeinfer.quantization.search.judge import FLOOR_DB
from edgeinfer.transforms.contract import GIVEN_KEY, GraphTransform, ReportBuilder
from edgeinfer.transforms.options import require_nodes
from edgeinfer.values import as_tuple

__all__ = ["FLOOR_DB", "QuantizeInt8"]

# 32 layers of a transformer have 1,500 nodes. A graph net of 2,100 took 163 s by default, 40 s with `fast`,
# for one decibel.
_MANY_NODES = 1500


@final
@attrs.frozen
class QuantizeInt8(GraphTransform):
    """Make a float model int8 with everything that helps, under a tolerance, and only if it gains time.

    It quantizes statically; equalizes, smooths, re-rounds weights and corrects biases where that brings the
    outputs closer to float; and when a tolerance is given and not met, gives those layers back to float that
    buy the most accuracy for the least time. At the end it measures: a model that is not faster on the
    target's backend than the one that was given stays float, and the report says so. `report.data["ledger"]`
    has all that was tried.

    Args:
        calibration: Representative feeds; see `edgeinfer.calibration.calibration`. They are read once, and
            kept as far as they fit the memory; what is larger is read up to four times.
        target: Where the model will run; None for the reference backend.
        evaluate: From a Model to a metric of which more is better.
        max_drop: How much of that metric may be lost.
        min_sqnr_db: The SQNR in dB that the model's worst output must keep, with 95 %, on feeds like the
            judged ones. Without any tolerance it is `FLOOR_DB`.
        keep_float: Names of nodes that stay in float in any case.
        method: How ranges are found; see `QuantizeStatic`. None tries the usual ones.
        spend: What a decibel is worth, as a share of the model's time. At most so much is spent on layers
            that go back to float unasked; and outputs of the model come from integer kernels where a decibel
            that it costs saves more. 0 for neither.
        samples: How many feeds, spread over the calibration, the outputs are judged on; if that is at most a
            quarter of all, nothing is fitted on them.
        measure: Measure the speed: of each layer, to place quantizers and to weigh layers by, and of the
            result. Where the target's backend is not on this machine it is not measured, and the report says
            so; multiply-accumulates then stand for time.
        effort: `fast` takes about twice as long as one static quantization, `default` some times that,
            `thorough` tries everything with all feeds. By default a graph of more than 1,500 nodes is
            searched as with `fast`, and the report says so.
        feedback: The output that each input of a recurrent model takes its next value from, by input; empty
            when there is none; None to find that by the feeds and the names.
        rival: A float model that the result is to beat, such as the same in float16. Where int8 is not faster
            at first nothing is searched: what comes later brings it closer to float, not ahead.
        stopwatch: What measures time where that is not this machine, or a test's.
        max_bytes: How many bytes of feeds are kept in memory.
        progress: Show the steps; None in a terminal or notebook only. The logger `edgeinfer` has them at
            INFO.
    """

    min_opset: ClassVar[int] = 13

    calibration: Any = attrs.field(default=None, eq=False)
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    evaluate: Callable[[Model], float] | None = attrs.field(default=None, kw_only=True, eq=False)
    max_drop: float | None = attrs.field(default=None, kw_only=True)
    min_sqnr_db: float | None = attrs.field(default=None, kw_only=True)
    keep_float: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=as_tuple)
    method: str | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.in_((None, *METHODS))
    )
    spend: float = attrs.field(default=0.03, kw_only=True, validator=attrs.validators.ge(0))
    samples: int = attrs.field(default=24, kw_only=True, validator=attrs.validators.ge(1))
    measure: bool = attrs.field(default=True, kw_only=True)
    effort: str = attrs.field(default="default", kw_only=True, validator=attrs.validators.in_(EFFORTS))
    feedback: Mapping[str, str] | None = attrs.field(default=None, kw_only=True)
    rival: Model | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)
    stopwatch: Stopwatch | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)
    max_bytes: int = attrs.field(default=DEFAULT_KEPT_BYTES, kw_only=True, validator=attrs.validators.ge(0))
    progress: bool | None = attrs.field(default=None, kw_only=True, eq=False)

    def __attrs_post_init__(self) -> None:
        if (self.max_drop is None) != (self.evaluate is None):
            raise TransformOptionError(
                "A tolerance on a metric needs both the metric and the drop.",
                where="QuantizeInt8, max_drop",
                expected="evaluate=... and max_drop=..., or neither",
                found=f"evaluate={self.evaluate}, max_drop={self.max_drop}",
            )
        if self.target is not None:
            Target.parse(self.target)

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Search, and take the result over.

        Raises:
            CalibrationError: There is no calibration, or it does not fit.
            PreconditionError: The model is quantized already by somebody else.
        """
        if quantized_for(model) is not None:
            report.skip("", "the model is quantized already; RetargetQDQ rewrites it for another runtime")
            return
        refuse_quantized(model)
        nodes = (node.name for node in model.graph.all_nodes())
        require_nodes(self.keep_float, nodes, "QuantizeInt8, keep_float")
        if self.calibration is None:
            raise CalibrationError(
                "QuantizeInt8 needs calibration data.",
                expected="representative feeds: mappings from input name to array, the batch axis included",
                found="calibration=None",
                hint="Pass QuantizeInt8(calibration=[{...}, ...]), or optimize(..., calibration=...).",
            )
        own = Model(model)
        first = model.meta.get(GIVEN_KEY)
        given = Model(first) if isinstance(first, ir.Model) else own
        effort = self._effort(len(model.graph), report)
        with Steps("QuantizeInt8", effort.steps, progress=self.progress) as step:
            found = Int8Search(self._options(effort), own, given, report, step).result()
        if found is not None:
            _take_over(model, found.ir)

    def _effort(self, nodes: int, report: ReportBuilder) -> Effort:
        if self.effort == "default" and nodes > _MANY_NODES:
            report.note(
                f"a graph of {nodes:,} nodes was searched with effort='fast', for each step builds and runs "
                "all of it; effort='thorough' tries everything"
            )
            return EFFORTS["fast"]
        return EFFORTS[self.effort]

    def _options(self, effort: Effort) -> SearchOptions:
        names = [field.name for field in attrs.fields(SearchOptions) if field.name != "effort"]
        return SearchOptions(effort=effort, **{name: getattr(self, name) for name in names})


def _take_over(model: ir.Model, other: ir.Model) -> None:
    model.graph, model.ir_version = other.graph, other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)
    model.metadata_props.update(other.metadata_props)
    model.meta.update(other.meta)
