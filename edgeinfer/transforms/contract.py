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
from typing import Any, ClassVar, NamedTuple, Protocol, cast, final, runtime_checkable

import attrs
import numpy as np
import onnx_ir as ir

import edgeinfer.terminal  # noqa: F401 (progress by rich from now on)
from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.display import Table
from edgeinfer.errors import EdgeInferError, InvalidModelError, TransformContractError, TransformError
from edgeinfer.graph.inline_functions import inline_functions
from edgeinfer.graph.layer_like import Place, layer_like
from edgeinfer.graph.opset import convert_opset
from edgeinfer.model.model import Model
from edgeinfer.transforms.options import OurErrors
from edgeinfer.transforms.report_table import COLUMNS, Row, places, report_rows, short_lines
from edgeinfer.values import as_tuple

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


class Applied(NamedTuple):
    """One place that a transform changed."""

    node: str
    what: str


class Skipped(NamedTuple):
    """One place that a transform left alone, and why."""

    node: str
    reason: str


@final
@attrs.frozen(kw_only=True)
class TransformReport:
    """What a transform did.

    Attributes:
        name: The transform's class name.
        config: Its configuration, as JSON-compatible values.
        applied: The places it changed.
        skipped: The places it left alone, with reasons.
        notes: What else there is to say, such as an opset conversion or a warning.
        data: Figures that the transform gives to programs, by name.
        modified: Whether the graph changed (by digest).
        digest_before: The model's digest before.
        digest_after: The model's digest after.
        seconds: How long it took.
        steps: The reports of the parts, for a Pipeline.
    """

    name: str
    config: Mapping[str, object] = attrs.field(factory=dict)
    applied: tuple[Applied, ...] = attrs.field(default=(), converter=as_tuple)
    skipped: tuple[Skipped, ...] = attrs.field(default=(), converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    data: Mapping[str, Any] = attrs.field(factory=dict)
    modified: bool
    digest_before: str
    digest_after: str
    seconds: float = 0.0
    steps: tuple[TransformReport, ...] = attrs.field(default=(), converter=as_tuple)

    def summary(self) -> tuple[str, ...]:
        """Return the overview: one line, and for a Pipeline one more a step."""
        parts = [places(len(self.applied), "changed")] if self.modified else ["nothing changed"]
        parts += [places(len(self.skipped), "left alone")] if self.skipped else []
        parts += [f"{len(self.notes)} note{'s' if len(self.notes) > 1 else ''}"] if self.notes else []
        line = f"{self.name}: {', '.join(parts)} ({self.seconds:.2f} s)"
        return (line, *(f"  {text}" for step in self.steps for text in step.summary()))

    def table(self, *, details: bool = False) -> Table:
        """Return the overview, and below it what was done and left alone.

        Args:
            details: One row a place. Else entries that say the same are one row with their number.
        """
        rows = self._rows(details=details)
        grouped = any(row.places not in ("", "1") for row in rows)
        footer = "table(details=True) has one row a place" if grouped else ""
        return Table(title="\n".join(self.summary()), columns=COLUMNS, rows=rows, footer=footer)

    def _rows(self, *, details: bool) -> list[Row]:
        return [
            row
            for report in self.steps or (self,)
            for row in report_rows(report.name, report.applied, report.skipped, report.notes, details=details)
        ]

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-compatible values."""
        plain: dict[str, object] = {
            "name": self.name,
            "config": _jsonable(self.config),
            "modified": self.modified,
            "digest_before": self.digest_before,
            "digest_after": self.digest_after,
            "seconds": self.seconds,
            "applied": [entry._asdict() for entry in self.applied],
            "skipped": [entry._asdict() for entry in self.skipped],
            "notes": list(self.notes),
            "data": _jsonable(self.data),
        }
        return plain | ({"steps": [step.to_dict() for step in self.steps]} if self.steps else {})

    def __str__(self) -> str:
        """Return the overview and the largest groups."""
        return "\n".join([*self.summary(), *short_lines(self._rows(details=False))])

    def _repr_html_(self) -> str:
        return self.table().to_html()


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
    """

    min_opset: ClassVar[int] = 7
    changes_signature: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True
    inlines_functions: ClassVar[bool] = True
    names_layers: ClassVar[bool] = False

    @abc.abstractmethod
    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Change `model`, a private copy, in place and say so in `report`."""

    def config(self) -> dict[str, object]:
        """Return the configuration as JSON-compatible values, for the history."""
        if not attrs.has(type(self)):
            return {}
        fields = attrs.fields(cast("type[attrs.AttrsInstance]", type(self)))
        return {
            f.name: _jsonable(getattr(self, f.name))
            for f in fields
            # What does not count for equality is data, or a way to show things: no configuration.
            if f.eq and getattr(self, f.name) != f.default
        }

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
        _name_the_rest(places, report, name)
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
            modified=current.digest != model.digest,
            digest_before=model.digest,
            digest_after=current.digest,
            seconds=sum(step.seconds for step in steps),
            steps=steps,
        )
        return TransformResult(current, report)


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
        config=report.config,
        digest_before=report.digest_before,
        digest_after=report.digest_after,
        applied=len(report.applied),
        skipped=len(report.skipped),
        notes=report.notes,
    )


def _name_the_rest(layers: Iterable[Place], report: ReportBuilder, name: str) -> None:
    """Name the layers that the rewrite said nothing about."""
    named = {node for node, _ in (*report.applied, *report.skipped)}
    for layer in layers:
        if layer.node not in named:
            reason = layer.inside or "has no recipe"
            report.skip(layer.node, f"{layer.op_type} {reason}: {name} leaves it alone")


def _name(node: ir.Node | str) -> str:
    return node if isinstance(node, str) else node.name or node.op_type


def _jsonable(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items: Iterable[object] = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_jsonable(item) for item in items]
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text or len(text) > 200 else text
