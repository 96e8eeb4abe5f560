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
`onnx_ir.passes.Sequential`; and any `onnx_ir.passes.PassBase` can stand in a `Pipeline` (`as_transform`).
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, final, runtime_checkable

import attrs
import onnx_ir as ir

import edgeinfer.terminal  # noqa: F401 (progress by rich from now on)
from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.budget import format_bytes
from edgeinfer.errors import EdgeInferError, InvalidModelError, TransformContractError, TransformError
from edgeinfer.graph.inline_functions import inline_functions
from edgeinfer.graph.layer_like import Place, layer_like
from edgeinfer.graph.opset import convert_opset
from edgeinfer.model.model import Model
from edgeinfer.model.plain_config import config_of, plain_config
from edgeinfer.model.transform_report import Applied, Skipped, TransformReport
from edgeinfer.transforms.options import OurErrors

__all__ = [
    "GIVEN_KEY",
    "Applied",
    "GraphTransform",
    "OnnxIrPass",
    "Pipeline",
    "ReportBuilder",
    "Skipped",
    "Transform",
    "TransformReport",
    "TransformResult",
    "as_transform",
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


@final
@attrs.frozen
class OnnxIrPass:
    """An `onnx_ir.passes.PassBase` as a Transform."""

    wrapped: ir.passes.PassBase

    def apply(self, model: Model, /) -> TransformResult:
        """Run the pass on a copy."""
        started = time.perf_counter()
        name = type(self.wrapped).__name__
        try:
            result = self.wrapped(model.copy_ir())
            after = Model.from_ir(result.model, path=model.path)
        except EdgeInferError as error:
            raise TransformContractError(f"{name} made an invalid graph.", found=str(error)) from error
        except Exception as error:
            raise TransformError(f"The pass {name} failed: {error}") from error
        report = ReportBuilder()
        if after.digest != model.digest:
            report.apply("", f"ran the onnx_ir pass {name}")
        else:
            report.skip("", "the pass had nothing to do")
        return TransformResult(after, report.finish(name, model, after, started))


def _as_transforms(items: Iterable[object]) -> tuple[Transform, ...]:
    return tuple(as_transform(item) for item in items)


@final
@attrs.frozen
class Pipeline:
    """Transforms, applied in order, with the history kept in the model's metadata. A Transform itself.

    Args:
        transforms: Transforms, Pipelines, or `onnx_ir` passes.
        on_step: Called with each step's report when it is done.
    """

    transforms: tuple[Transform, ...] = attrs.field(default=(), converter=_as_transforms)
    on_step: Callable[[TransformReport], None] | None = attrs.field(
        default=None, kw_only=True, eq=False, repr=False
    )

    def apply(self, model: Model, /) -> TransformResult:
        """Apply every transform and record each in the history.

        Raises:
            TransformError: A transform cannot be applied, or raised something of its own.
        """
        steps: list[TransformReport] = []
        current = model
        for transform in self.transforms:
            current, report = _applied(transform, current)
            if report.modified and not report.steps:
                current = current.with_history((*current.history, _history_entry(report)))
            steps.extend(report.steps or (report,))
            if self.on_step is not None:
                self.on_step(report)
        report = TransformReport(
            name="Pipeline",
            config={"transforms": [step.name for step in steps]},
            applied=[entry for step in steps for entry in step.applied],
            skipped=[entry for step in steps for entry in step.skipped],
            notes=[note for step in steps for note in step.notes],
            results=[*_sizes(model, current), *(text for step in steps for text in step.results)],
            data={name: value for step in steps for name, value in step.data.items()},
            modified=current.digest != model.digest,
            digest_before=model.digest,
            digest_after=current.digest,
            seconds=sum(step.seconds for step in steps),
            steps=steps,
        )
        return TransformResult(current, report)


def _sizes(before: Model, after: Model) -> list[str]:
    """Return the sizes of the weights, where they differ."""
    old, new = (format_bytes(model.nbytes) for model in (before, after))
    return [] if old == new else [f"weights {old} -> {new}"]


def _applied(transform: Transform, model: Model) -> TransformResult:
    """Apply a transform that a third party may have written."""
    name = type(transform).__name__
    try:
        result: object = transform.apply(model)
    except EdgeInferError:
        raise
    except Exception as error:
        raise TransformError(f"{name} failed: {type(error).__name__}: {error}") from error
    if isinstance(result, tuple) and len(result) == 2:
        after, report = result
        if isinstance(after, Model) and isinstance(report, TransformReport):
            return TransformResult(after, report)
    raise TransformContractError(
        f"{name} gave back something else than a transform does.",
        where=f"{name}.apply",
        expected="TransformResult(model, report)",
        found=type(result).__name__,
        hint="`edgeinfer.transforms` has TransformResult, TransformReport and ReportBuilder.",
    )


def as_transform(item: object) -> Transform:
    """Return `item` as a Transform: ours, anything with `apply`, or an `onnx_ir` pass.

    Raises:
        TransformError: It is none of these.
    """
    if isinstance(item, type):
        raise TransformError(
            f"{item.__name__} is a class, not a transform.", hint=f"Write {item.__name__}() with parentheses."
        )
    if isinstance(item, Transform):
        return item
    if isinstance(item, ir.passes.PassBase):
        return OnnxIrPass(item)
    raise TransformError(
        "That is not a transform.",
        expected="an object with apply(model), or an onnx_ir.passes.PassBase",
        found=type(item).__name__,
    )


def _history_entry(report: TransformReport) -> HistoryEntry:
    return HistoryEntry(
        name=report.name,
        config=plain_config(report.config),
        digest_before=report.digest_before,
        digest_after=report.digest_after,
        applied=len(report.applied),
        skipped=len(report.skipped),
        notes=report.notes,
    )


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
