"""The main job from end to end: inspect, optimize, compile, save, load, infer, measure."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.api import optimize
from edgeinfer.backends.registry import backends
from edgeinfer.demo.data import Digits, load_digits, model_path
from edgeinfer.display import Table, track
from edgeinfer.errors import EdgeInferError
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.inspection import InspectReport, inspect
from edgeinfer.model.model import Model
from edgeinfer.model.transform_report import TransformReport
from edgeinfer.numerics.closeness import ClosenessAccumulator
from edgeinfer.quantization.qdq.marks import quantized_for
from edgeinfer.runtime.benchmark import benchmark
from edgeinfer.runtime.execution import execution
from edgeinfer.runtime.open import load
from edgeinfer.values import as_tuple

__all__ = ["DemoReport", "DemoRow", "run_demo"]

REFERENCE = "onnxruntime"
# A model this small is fastest, and steadiest, on one thread.
OPTIONS = {"onnxruntime": {"threads": 1}, "openvino": {"threads": 1}}


@final
@attrs.frozen(kw_only=True)
class DemoRow:
    """One version of the model on one backend.

    Attributes:
        variant: What was done to the model: `original`, `optimized` or `int8`.
        backend: The backend and its device.
        accuracy: Share of held-out images classified right.
        sqnr_db: Closeness of the logits to those of the original model.
        p50_ms: Median latency of one image.
        p99_ms: 99th percentile of the same.
        disk_bytes: Size of the artifact.
        ran: How many layers ran in which precision, by the runtime's own account.
        stayed_float: Why the model that was to be int8 stayed in float; empty when it is int8.
    """

    variant: str
    backend: str
    accuracy: float
    sqnr_db: float
    p50_ms: float
    p99_ms: float
    disk_bytes: int
    ran: str
    stayed_float: str = ""


@final
@attrs.frozen(kw_only=True)
class DemoReport:
    """What the demonstration found.

    Attributes:
        before: The original model.
        after: The optimized model.
        transforms: What was applied to it: transform, and how many places it changed.
        rows: The measurements.
        unavailable: Backends that could not take part, and why.
        images: How many held-out images the accuracy is of.
    """

    before: InspectReport
    after: InspectReport
    transforms: tuple[tuple[str, int], ...] = attrs.field(converter=as_tuple)
    rows: tuple[DemoRow, ...] = attrs.field(converter=as_tuple)
    unavailable: Mapping[str, str]
    images: int

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        return {
            "transforms": dict(self.transforms),
            "nodes_before": len(self.before.nodes),
            "nodes_after": len(self.after.nodes),
            "images": self.images,
            "rows": [attrs.asdict(row) | {"sqnr_db": min(row.sqnr_db, 1e9)} for row in self.rows],
            "unavailable": dict(self.unavailable),
        }

    def table(self) -> Table:
        """Return one row for each version and backend."""
        rows: list[tuple[object, ...]] = [
            (
                f"{row.variant}, but it stayed float" if row.stayed_float else row.variant,
                row.backend,
                f"{row.accuracy:.2%}",
                f"{row.sqnr_db:.0f} dB" if row.sqnr_db < 1e9 else "same",
                f"{row.p50_ms * 1000:.0f} µs",
                f"{row.p99_ms * 1000:.0f} µs",
                f"{row.disk_bytes / 1000:.0f} kB",
                row.ran,
            )
            for row in self.rows
        ]
        lines = [f"{name} did not take part: {why}" for name, why in self.unavailable.items()]
        lines += [
            f"{row.variant} on {row.backend} stayed float: {row.stayed_float}"
            for row in self.rows
            if row.stayed_float
        ]
        return Table(
            title=f"Digits, {self.images} held-out images",
            columns=("model", "runs on", "accuracy", "closeness", "p50", "p99", "size", "what ran"),
            rows=rows,
            footer="\n".join(lines),
        )

    def steps_table(self) -> Table:
        """Return what optimizing did."""
        rows = [(name, f"{count} places" if count else "nothing to do") for name, count in self.transforms]
        rows.append(("nodes", f"{len(self.before.nodes)} before, {len(self.after.nodes)} after"))
        return Table(title="Optimized", columns=("", ""), rows=rows)

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in (self.before.table(), self.steps_table(), self.table()))

    def _repr_html_(self) -> str:
        return "".join(t.to_html() for t in (self.before.table(), self.steps_table(), self.table()))


def run_demo(*, runs: int = 300, progress: bool | None = None) -> DemoReport:
    """Run the whole way on every backend that is available here.

    The int8 versions are made for each backend by one call: `optimize(model, target=..., calibration=...)`.

    Args:
        runs: How many inferences each latency is of.
        progress: Show a progress bar. None: in a terminal or a notebook only.
    """
    digits = load_digits()
    original = Model.load(model_path())
    optimized = optimize(original)
    with load(compile_model(original, REFERENCE)) as session:
        expected = session.infer({"images": digits.images})["logits"]
    entries = backends()
    jobs = [("original", REFERENCE)]
    jobs += [(variant, name) for variant in ("optimized", "int8") for name in entries]
    rows: list[DemoRow] = []
    unavailable = {
        name: entry.reason.splitlines()[0] for name, entry in entries.items() if not entry.available
    }
    with tempfile.TemporaryDirectory(prefix="edgeinfer-demo-") as folder:
        for variant, backend in track(jobs, "Measuring", total=len(jobs), progress=progress):
            if backend in unavailable:
                continue
            try:
                model = original if variant == "original" else optimized
                if variant == "int8":
                    if entries[backend].capabilities().dialect is None:
                        continue
                    # One image at a time, as it will run: speed is measured on the feeds, too.
                    feeds = [{"images": image[None]} for image in digits.calibration]
                    model = optimize(original, target=backend, calibration=feeds)
                path = Path(folder) / f"{variant}-{backend}.edge"
                rows.append(_measure(variant, model, backend, path, digits, expected, runs))
            except EdgeInferError as error:
                unavailable[backend] = error.what
    return DemoReport(
        before=inspect(original),
        after=inspect(optimized),
        transforms=[(step.name, len(step.applied)) for step in _report(optimized).steps],
        rows=rows,
        unavailable=unavailable,
        images=len(digits.labels),
    )


def _report(model: Model) -> TransformReport:
    assert model.report is not None, "what optimize returns has a report"
    return model.report


def _why_float(model: Model) -> str:
    """Return why a model that was to be int8 is not, or an empty text."""
    if quantized_for(model.ir) is not None:
        return ""
    report = _report(model).steps[-1]
    reasons = [entry.reason for entry in report.skipped if not entry.node]
    return "; ".join(reasons or report.notes) or "QuantizeInt8 changed nothing"


def _measure(
    variant: str, model: Model, backend: str, path: Path, digits: Digits, expected: Any, runs: int
) -> DemoRow:
    artifact = compile_model(model, backend, options=OPTIONS.get(backend)).save(path)
    with load(path) as session:
        logits = session.infer({"images": digits.images})["logits"]
        closeness = ClosenessAccumulator()
        closeness.update(expected, logits)
        timing = benchmark(session, {"images": digits.images[:1]}, warmup=20, runs=runs, progress=False)
        return DemoRow(
            variant=variant,
            backend=f"{session.backend}:{session.device}",
            accuracy=digits.accuracy(logits),
            sqnr_db=closeness.result().sqnr_db,
            p50_ms=timing.p50_ms,
            p99_ms=timing.p99_ms,
            disk_bytes=artifact.disk_bytes,
            ran=execution(session).describe(),
            stayed_float=_why_float(model) if variant == "int8" else "",
        )
