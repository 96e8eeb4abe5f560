"""The contract of a transform, in one file and checked by the framework.

A transform of ours is a frozen value whose class derives from `GraphTransform` and writes one method,
`rewrite(graph, report)`, which changes a private copy and says what it did. `GraphTransform.apply` does the
rest, once for all of them: it converts the opset when the transform needs a newer one, copies, rewrites,
checks, and makes the report. The checks, each a `TransformContractError` when broken:

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
from typing import Any, ClassVar, NamedTuple, Protocol, cast, final, runtime_checkable

import attrs
import onnx_ir as ir

import edgeinfer.terminal  # noqa: F401 (progress by rich from now on)
from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.errors import EdgeInferError, InvalidModelError, TransformContractError, TransformError
from edgeinfer.graph.opset import convert_opset
from edgeinfer.model.model import Model
from edgeinfer.model.transform_report import Applied, Skipped, TransformReport, jsonable

__all__ = [
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
        self.data: dict[str, Any] = {}

    def apply(self, node: ir.Node | str, what: str) -> None:
        """Record a change."""
        self.applied.append(Applied(_name(node), what))

    def skip(self, node: ir.Node | str, reason: str) -> None:
        """Record a place that was left alone."""
        self.skipped.append(Skipped(_name(node), reason))

    def note(self, text: str) -> None:
        """Record something that concerns the whole model."""
        self.notes.append(text)

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
            data=self.data,
            modified=after.digest != before.digest,
            digest_before=before.digest,
            digest_after=after.digest,
            seconds=time.perf_counter() - started,
        )


class GraphTransform(ir.passes.FunctionalPass):
    """Base of edgeinfer's own transforms; see the module's docstring.

    Class attributes:
        min_opset: The opset that the rewrite needs; an older model is converted first, and that is noted.
        changes_signature: Declares that inputs or outputs may change.
        idempotent: Whether applying twice equals applying once.
    """

    min_opset: ClassVar[int] = 7
    changes_signature: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True

    @abc.abstractmethod
    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Change `model`, a private copy, in place and say so in `report`."""

    def config(self) -> dict[str, object]:
        """Return the configuration as JSON-compatible values, for the history."""
        if not attrs.has(type(self)):
            return {}
        fields = attrs.fields(cast("type[attrs.AttrsInstance]", type(self)))
        return {f.name: jsonable(getattr(self, f.name)) for f in fields if getattr(self, f.name) != f.default}

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
        work = model.copy_ir()
        if 0 < model.opset < self.min_opset:
            work = convert_opset(work, self.min_opset, wanted_by=name)
            converted = work.clone()
        else:
            converted = None
        try:
            self.rewrite(work, report)
        except EdgeInferError:
            raise
        except Exception as error:
            raise TransformContractError(
                f"{name} failed: {type(error).__name__}: {error}",
                hint="This is a defect in the transform; please report it with the model.",
            ) from error
        if converted is not None and report.applied:
            report.notes.insert(0, f"converted from opset {model.opset} to {self.min_opset}")
        after = self._checked(model, work, report)
        return TransformResult(after, report.finish(name, model, after, started, config=self.config()))

    def _checked(self, before: Model, work: ir.Model, report: ReportBuilder) -> Model:
        name = type(self).__name__
        if not report.applied:
            # Nothing was done on purpose, so that an opset conversion alone is not kept either.
            if before.opset >= self.min_opset and Model(work).digest != before.digest:
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
            try:
                current, report = transform.apply(current)
            except EdgeInferError:
                raise
            except Exception as error:  # a third party's transform may raise anything
                name = type(transform).__name__
                raise TransformError(f"{name} failed: {type(error).__name__}: {error}") from error
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
            modified=current.digest != model.digest,
            digest_before=model.digest,
            digest_after=current.digest,
            seconds=sum(step.seconds for step in steps),
            steps=steps,
        )
        return TransformResult(current, report)


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
        config=report.config,
        digest_before=report.digest_before,
        digest_after=report.digest_after,
        applied=len(report.applied),
        skipped=len(report.skipped),
        notes=report.notes,
    )


def _name(node: ir.Node | str) -> str:
    return node if isinstance(node, str) else node.name or node.op_type
