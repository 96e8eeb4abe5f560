"""`PruneChannels`: fewer channels, really smaller tensors, and the rest refitted to make up for them."""

from __future__ import annotations

from typing import Any, ClassVar, final

import attrs
import onnx_ir as ir

from edgeinfer.artifact.signature import Signature
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.errors import TransformOptionError
from edgeinfer.pruning import options
from edgeinfer.pruning.budget.criteria import CRITERIA, Criterion
from edgeinfer.pruning.budget.settings import Budget, Settings
from edgeinfer.pruning.engine import prune_structured
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder
from edgeinfer.values import as_frozenset

__all__ = ["PruneChannels"]


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
        keep_nodes: Names of layers that keep all their channels and are not refitted.
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

    keep_macs: float | None = attrs.field(default=0.8, validator=options.part)
    calibration: Any = attrs.field(default=None, kw_only=True, eq=False, validator=options.feeds)
    keep_nodes: frozenset[str] = attrs.field(default=(), kw_only=True, converter=as_frozenset)
    keep_parameters: float | None = attrs.field(default=None, kw_only=True, validator=options.part)
    keep_memory: float | None = attrs.field(default=None, kw_only=True, validator=options.part)
    keep_latency: float | None = attrs.field(default=None, kw_only=True, validator=options.part)
    target: Target | str | None = attrs.field(default=None, kw_only=True, validator=options.target)
    criterion: Criterion = attrs.field(
        default="second_order",
        kw_only=True,
        validator=options.one_of(*CRITERIA),
    )
    multiple: int | None = attrs.field(
        default=None, kw_only=True, validator=options.number(at_least=1, whole=True, optional=True)
    )
    rounds: int = attrs.field(default=1, kw_only=True, validator=options.number(at_least=1, whole=True))
    measure: int = attrs.field(default=48, kw_only=True, validator=options.number(at_least=0, whole=True))
    max_columns: int = attrs.field(
        default=24_000, kw_only=True, validator=options.number(at_least=100, whole=True)
    )
    ridge: float | None = attrs.field(
        default=None, kw_only=True, validator=options.number(at_least=0, optional=True)
    )
    seed: int = attrs.field(default=0, kw_only=True, validator=options.number(at_least=0, whole=True))
    progress: bool | None = attrs.field(default=None, kw_only=True)

    names_layers = True
    reports_on = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

    def __attrs_post_init__(self) -> None:
        _ = self.budget  # refused here if there is none

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
            raise TransformOptionError(
                "PruneChannels needs a budget.", hint="Give keep_macs, for instance 0.8."
            )
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
                keep_nodes=self.keep_nodes,
                target=target,
            ),
        )
