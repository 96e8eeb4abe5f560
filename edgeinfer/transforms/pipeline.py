"""`Pipeline`: transforms in a row, with a history of what they did. Passes of `onnx_ir` may be among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import final

import attrs
import onnx_ir as ir

from edgeinfer.artifact.history import HistoryEntry
from edgeinfer.budget import format_bytes
from edgeinfer.errors import EdgeInferError, TransformContractError, TransformError
from edgeinfer.model.model import Model
from edgeinfer.model.plain_config import plain_config
from edgeinfer.model.transform_report import TransformReport
from edgeinfer.transforms.contract import ReportBuilder, Transform, TransformResult

__all__ = ["OnnxIrPass", "Pipeline", "as_transform"]


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
