"""`PruneChannels`: fewer channels, really smaller tensors, and the rest refitted to make up for them."""

from __future__ import annotations

from typing import Any, ClassVar, final

import attrs
import onnx_ir as ir

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.errors import PreconditionError
from edgeinfer.pruning.budget.criteria import Criterion
from edgeinfer.pruning.budget.plan import Budget, Settings
from edgeinfer.pruning.engine import prune_structured
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["PruneChannels"]


def _ratio(_: object, attribute: Any, value: float | None) -> None:
    if value is not None and not 0.0 < value <= 1.0:
        raise PreconditionError(
            f"{attribute.name} is the part to keep.", expected="above 0, at most 1", found=value
        )


@final
@attrs.frozen
class PruneChannels(GraphTransform):
    """Remove channels until a budget is met, and refit what is left to the float model's outputs.

    Coupled channels (residual streams, concatenations, shuffles, depthwise layers) go together. Which ones go
    is decided by a second-order criterion within each group and by the measured error of the model's outputs
    across groups; of several plans the one with the least joint error is taken. After that every layer behind
    a change is refitted by least squares, in topological order.

    Without calibration the criterion falls back to magnitude and nothing is refitted; the report says so.

    Attributes:
        keep_macs: The part of the multiply-accumulates to keep, or None.
        calibration: A re-iterable of feeds. Some hundred samples are enough.
        keep_parameters: The part of the parameters to keep, instead of `keep_macs`.
        keep_memory: The part of the bytes of weights and activations to keep, instead.
        keep_latency: The part of the latency to keep, instead: measured on the target's backend (ONNX Runtime
            without a target) with the first sample; on a CPU, one thread's processor time.
        target: Where the model will run; gives the multiple of channels and the backend to measure on.
        criterion: How channels of one group are ranked.
        multiple: The multiple that channel counts keep, instead of the target's (16 without one: what a
            CPU's runtimes compute at once). Groups of less than two of these are pruned in smaller steps.
        rounds: In how many rounds the budget is reached; more than one for steep ratios.
        measure: On how many samples the error of the outputs is measured; 0 relies on local errors.
        max_columns: How many output positions of a layer its moments are taken from.
        ridge: How strongly refitted weights are drawn to the present ones. None: chosen on held-out feeds.
        seed: For the random criterion.
        progress: Show progress. None: in a terminal or a notebook.
    """

    idempotent: ClassVar[bool] = False

    keep_macs: float | None = attrs.field(default=0.8, validator=_ratio)
    calibration: Any = attrs.field(default=None, kw_only=True, eq=False)
    keep_parameters: float | None = attrs.field(default=None, kw_only=True, validator=_ratio)
    keep_memory: float | None = attrs.field(default=None, kw_only=True, validator=_ratio)
    keep_latency: float | None = attrs.field(default=None, kw_only=True, validator=_ratio)
    target: Target | str | None = attrs.field(default=None, kw_only=True)
    criterion: Criterion = attrs.field(
        default="second_order",
        kw_only=True,
        validator=attrs.validators.in_(("second_order", "activation", "magnitude", "random")),
    )
    multiple: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    rounds: int = attrs.field(default=1, kw_only=True, validator=attrs.validators.ge(1))
    measure: int = attrs.field(default=48, kw_only=True, validator=attrs.validators.ge(0))
    max_columns: int = attrs.field(default=24_000, kw_only=True, validator=attrs.validators.ge(100))
    ridge: float | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    seed: int = attrs.field(default=0, kw_only=True)
    progress: bool | None = attrs.field(default=None, kw_only=True)

    names_layers = True
    reports_on = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

    @property
    def budget(self) -> Budget:
        """The one limit that was given; the others yield to it."""
        for metric, keep in (
            ("latency", self.keep_latency),
            ("memory", self.keep_memory),
            ("parameters", self.keep_parameters),
        ):
            if keep is not None:
                return Budget(metric=metric, keep=keep)  # type: ignore[arg-type]
        if self.keep_macs is None:
            raise PreconditionError("PruneChannels needs a budget.", hint="Give keep_macs, for instance 0.8.")
        return Budget(metric="macs", keep=self.keep_macs)

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Prune in rounds, each from the state that the one before left."""
        target = Target.parse(self.target) if self.target is not None else None
        profile = None if target is None else target.profile
        default = 16 if profile is None else profile.channel_multiple
        prune_structured(
            model,
            report,
            Settings(
                kind="channel",
                budget=self.budget,
                feeds=None
                if self.calibration is None
                else as_calibration(self.calibration, Signature.of_graph(model.graph)),
                criterion=self.criterion,
                multiple=default if self.multiple is None else self.multiple,
                rounds=self.rounds,
                measure=self.measure,
                max_columns=self.max_columns,
                ridge=self.ridge,
                seed=self.seed,
                progress=self.progress,
                target=target,
            ),
        )
