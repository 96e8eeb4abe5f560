"""The contract of a transform, in one file and checked by the framework.

A transform of ours is a frozen value whose class derives from `GraphTransform` and writes one method,
`rewrite(graph, report)`, which changes a private copy and says what it did. `GraphTransform.apply` does the
rest, once for all of them: it copies, inlines functions and converts the opset where the transform needs it,
rewrites, names the layers that were passed over, checks, and makes the report. The checks, each a
`TransformContractError` when broken:

1. The report tells the truth: something was applied if and only if the digest changed.
2. The signature is kept, unless the class declares `changes_signature`.
3. The result passes the ONNX checker.

A non-match that can be expected is a `skipped` entry. A broken contract or precondition is an exception.

`GraphTransform` is an `onnx_ir.passes.FunctionalPass`, so each transform can stand in an
`onnx_ir.passes.Sequential`; and any `onnx_ir.passes.PassBase` can stand in a `Pipeline`.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, final, runtime_checkable

import onnx_ir as ir

import edgeinfer.terminal  # noqa: F401 (progress by rich from now on)
from edgeinfer.errors import EdgeInferError, InvalidModelError, TransformContractError
from edgeinfer.graph.inline_functions import inline_functions
from edgeinfer.graph.layer_like import Place, layer_like
from edgeinfer.graph.opset import convert_opset
from edgeinfer.model.model import Model
from edgeinfer.model.plain_config import config_of
from edgeinfer.model.transform_report import Applied, Skipped, TransformReport
from edgeinfer.transforms.options import OurErrors

__all__ = [
    "GIVEN_KEY",
    "Applied",
    "GraphTransform",
    "ReportBuilder",
    "Skipped",
    "Transform",
    "TransformReport",
    "TransformResult",
]


# `ir.Model.meta`, in memory only: the graph that the first of several transforms was given.
GIVEN_KEY = "edgeinfer.given"


class TransformResult(NamedTuple):
    """A transformed model and the report of how it came about."""

    model: Model
    report: TransformReport


@runtime_checkable
class Transform(Protocol):
    """Anything with `apply(model) -> TransformResult`."""

    def apply(self, model: Model, /) -> TransformResult:
        """Return a new model and a report; the model given is not changed."""
        ...


class ReportBuilder:
    """Collects what a rewrite says while it works."""

    def __init__(self) -> None:
        self.applied: list[Applied] = []
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.results: list[str] = []
        self.data: dict[str, Any] = {}

    def apply(self, node: ir.Node | str, what: str) -> None:
        """Record a change."""
        self.applied.append(Applied(_name(node), what))

    def skip(self, node: ir.Node | str, reason: str) -> None:
        """Record a place that was left alone."""
        self.skipped.append(Skipped(_name(node), reason))

    def note(self, text: str) -> None:
        """Record something that concerns the entire model."""
        self.notes.append(text)

    def result(self, text: str) -> None:
        """Record what came of it, such as speed or closeness: a note that is shown before everything else."""
        self.note(text)
        self.results.append(text)

    def include(self, report: TransformReport, *, applied: bool = True) -> None:
        """Take in what a part of the work said.

        Args:
            report: The part's report.
            applied: Also what it changed; False when the change was not kept.
        """
        self.applied.extend(report.applied if applied else ())
        self.skipped.extend(report.skipped)
        self.notes.extend(report.notes)

    def finish(
        self,
        name: str,
        before: Model,
        after: Model,
        started: float,
        *,
        config: Mapping[str, object] | None = None,
    ) -> TransformReport:
        """Return the report.

        Args:
            name: The transform's class name.
            before: The model that was given.
            after: The model that is given back; whether it differs is decided by digest.
            started: `time.perf_counter()` at the beginning.
            config: The transform's configuration, as JSON-compatible values.
        """
        return TransformReport(
            name=name,
            config=config or {},
            applied=self.applied,
            skipped=self.skipped,
            notes=self.notes,
            results=self.results,
            data=self.data,
            modified=after.digest != before.digest,
            digest_before=before.digest,
            digest_after=after.digest,
            seconds=time.perf_counter() - started,
        )


class GraphTransform(ir.passes.FunctionalPass, metaclass=OurErrors):
    """Base of edgeinfer's own transforms; see the module's docstring.

    Class attributes:
        min_opset: The opset that the rewrite needs; an older model is converted first, and that is noted.
        changes_signature: Declares that inputs or outputs may change.
        idempotent: Whether applying twice equals applying once.
        inlines_functions: Whether model-local functions are put in place of their calls first, so that the
            rewrite sees their nodes. That is kept, and noted, when the rewrite changes something.
        names_layers: Declares that each layer is named in the report: what the rewrite says nothing about is
            reported as skipped.
        reports_on: Operators that the rewrite itself says enough about where they are in the main graph. With
            `names_layers`, the layers of other operators and of subgraphs are reported for it.
    """

    min_opset: ClassVar[int] = 7
    changes_signature: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    inlines_functions: ClassVar[bool] = True
    names_layers: ClassVar[bool] = False
    reports_on: ClassVar[frozenset[str]] = frozenset()

    @abc.abstractmethod
    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Change `model`, a private copy, in place and say so in `report`."""

    def config(self) -> dict[str, object]:
        """Return the configuration as JSON-compatible values without data, for the history."""
        return config_of(self)

    @final
    def apply(self, model: Model, /) -> TransformResult:
        """Apply the transform; `model` is not changed.

        Raises:
            TransformError: The model lacks what the transform needs.
            TransformContractError: The transform broke its contract (a defect in the transform).
        """
        started = time.perf_counter()
        report = ReportBuilder()
        name = type(self).__name__
        work, prepared = self._prepared(model, report)
        before = Model(work).digest if prepared else model.digest
        places = tuple(layer_like(work)) if self.names_layers else ()
        try:
            self.rewrite(work, report)
        except EdgeInferError:
            raise
        except Exception as error:
            raise TransformContractError(
                f"{name} failed: {type(error).__name__}: {error}",
                hint="This is a defect in the transform; please report it with the model.",
            ) from error
        _name_the_rest(places, report, self)
        if report.applied:
            report.notes[:0] = prepared
        after = self._checked(model, work, report, before)
        return TransformResult(after, report.finish(name, model, after, started, config=self.config()))

    def _prepared(self, model: Model, report: ReportBuilder) -> tuple[ir.Model, list[str]]:
        """Return a copy that the rewrite can work on, and what was done to it."""
        work = model.copy_ir()
        said = []
        if self.inlines_functions and work.functions:
            gone, left = inline_functions(work)
            if gone:
                said.append(f"inlined the function{'s' if len(gone) > 1 else ''} {', '.join(gone)}")
            for function, reason in left.items():
                report.skip(function, f"the function is not looked into: {reason}")
        if 0 < model.opset < self.min_opset:
            work = convert_opset(work, self.min_opset, wanted_by=type(self).__name__)
            said.append(f"converted from opset {model.opset} to {self.min_opset}")
        return work, said

    def _checked(self, before: Model, work: ir.Model, report: ReportBuilder, prepared: str) -> Model:
        name = type(self).__name__
        if not report.applied:
            # Nothing was done on purpose, so that a preparation alone is not kept either.
            if Model(work).digest != prepared:
                raise TransformContractError(f"{name} changed the graph and did not say so.")
            return before
        try:
            after = Model.from_ir(work, path=before.path)
        except InvalidModelError as error:
            raise TransformContractError(f"{name} made an invalid graph.", found=str(error)) from error
        if after.digest == before.digest:
            raise TransformContractError(
                f"{name} says that it changed the graph, but it did not.", found=report.applied[0]
            )
        if not self.changes_signature and after.signature != before.signature:
            raise TransformContractError(
                f"{name} changed the signature without declaring it.",
                expected=before.signature.describe(),
                found=after.signature.describe(),
            )
        return after

    @final
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run as an `onnx_ir` pass."""
        result = self.apply(Model.load(model))
        return ir.passes.PassResult(result.model.copy_ir(), result.report.modified)


def _name_the_rest(layers: Iterable[Place], report: ReportBuilder, transform: GraphTransform) -> None:
    """Name the layers that the rewrite said nothing about."""
    name = type(transform).__name__
    named = {node for node, _ in (*report.applied, *report.skipped)}
    for layer in layers:
        known = not layer.inside and layer.op_type in transform.reports_on
        if layer.node not in named and not known:
            reason = layer.inside or "has no recipe"
            report.skip(layer.node, f"{layer.op_type} {reason}: {name} leaves it alone")


def _name(node: ir.Node | str) -> str:
    return node if isinstance(node, str) else node.name or node.op_type
