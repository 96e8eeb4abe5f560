"""`compare`: how close one model's answers are to another's, and where they begin to differ."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs
import numpy as np
import onnx
import onnx_ir as ir

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.display import Table, track
from edgeinfer.errors import InputError
from edgeinfer.feeds.generate import Feed, Feeds, Shapes, as_feeds, generate_feeds
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.layers import LayerCloseness, compare_layers
from edgeinfer.model.model import Model
from edgeinfer.numerics.closeness import Closeness, ClosenessAccumulator
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session
from edgeinfer.values import as_tuple

__all__ = ["Closeness", "CompareReport", "LayerCloseness", "Runnable", "compare"]

Runnable: TypeAlias = (
    "Model | Artifact | Session | str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model"
)
DEFAULT_SQNR_DB = 20.0


@final
@attrs.frozen(kw_only=True)
class CompareReport:
    """How close a candidate is to its reference.

    Attributes:
        reference: What the reference is, for people.
        candidate: What the candidate is.
        outputs: The closeness of each output, by the reference's name.
        layers: The closeness of each tensor that both graphs have, in topological order; for Models only.
        threshold_db: The SQNR below which a layer has gone wrong.
        feeds: How many feeds were compared.
        notes: What else must be said.
    """

    reference: str
    candidate: str
    outputs: Mapping[str, Closeness]
    layers: tuple[LayerCloseness, ...] = attrs.field(default=(), converter=as_tuple)
    threshold_db: float = DEFAULT_SQNR_DB
    feeds: int
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    @property
    def sqnr_db(self) -> float:
        """The SQNR of the worst output."""
        return min(closeness.sqnr_db for closeness in self.outputs.values())

    @property
    def first_bad_layer(self) -> LayerCloseness | None:
        """The first layer whose SQNR is below the threshold, in topological order."""
        return next((layer for layer in self.layers if layer.closeness.sqnr_db < self.threshold_db), None)

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values; infinite SQNR is None."""
        first = self.first_bad_layer
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "feeds": self.feeds,
            "threshold_db": self.threshold_db,
            "outputs": {name: _finite(attrs.asdict(value)) for name, value in self.outputs.items()},
            "layers": [
                {"tensor": layer.tensor, "node": layer.node, "op_type": layer.op_type}
                | _finite(attrs.asdict(layer.closeness))
                for layer in self.layers
            ],
            "first_bad_layer": first.node if first else None,
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Return one row an output, and the first layer that goes wrong."""
        rows = [(name, *_cells(value)) for name, value in self.outputs.items()]
        first = self.first_bad_layer
        lines = [f"{self.feeds} feed{'' if self.feeds == 1 else 's'}", *self.notes]
        if first is not None:
            lines.append(
                f"first layer below {self.threshold_db:g} dB: {first.op_type} {first.node!r} "
                f"(tensor {first.tensor!r}, {first.closeness.sqnr_db:.1f} dB)"
            )
        elif self.layers:
            lines.append(f"all {len(self.layers)} layers that both have are above {self.threshold_db:g} dB")
        return Table(
            title=f"{self.candidate} compared with {self.reference}",
            columns=("output", "SQNR dB", "cosine", "max abs", "mean abs", "top-1 agreement"),
            rows=rows,
            footer="; ".join(lines),
        )

    def layer_table(self) -> Table:
        """Return one row a layer."""
        rows = [
            (
                f"{'✗' if layer.closeness.sqnr_db < self.threshold_db else ' '} {layer.node}",
                layer.op_type,
                layer.tensor,
                *_cells(layer.closeness)[:-1],
            )
            for layer in self.layers
        ]
        return Table(
            title=f"Layers of {self.candidate} compared with {self.reference}",
            columns=("node", "type", "tensor", "SQNR dB", "cosine", "max abs", "mean abs"),
            rows=rows,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html() + (self.layer_table().to_html() if self.layers else "")


def _cells(value: Closeness) -> tuple[str, ...]:
    top1 = "" if value.top1_agreement is None else f"{value.top1_agreement:.2%}"
    return (
        f"{value.sqnr_db:.1f}",
        f"{value.cosine:.6f}",
        f"{value.max_abs:.3g}",
        f"{value.mean_abs:.3g}",
        top1,
    )


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in fields.items()
    }


def compare(
    a: Runnable,
    b: Runnable,
    feeds: Feeds | None = None,
    *,
    layers: bool = True,
    threshold_db: float = DEFAULT_SQNR_DB,
    tensors_per_pass: int = 16,
    shapes: Shapes | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CompareReport:
    """Compare a candidate with its reference on the same inputs.

    When both are models, they are compared layer by layer as well: every tensor whose name both graphs have
    (transforms keep the names of what they keep; a quantized model has the float tensor before each
    QuantizeLinear). The tensors are computed a few at a time, so memory stays flat however deep the model is.

    Args:
        a: The reference: a model or where to load it from, an artifact or its directory, or a session.
            Models run on the CPU in ONNX Runtime.
        b: The candidate, likewise.
        feeds: One feed or many. It is gone through several times; give a list or a re-iterable. None: 4
            made up from the reference's signature.
        layers: Compare layer by layer where both are models.
        threshold_db: The SQNR below which a layer has gone wrong. 20 dB is an error of a tenth of the signal.
        tensors_per_pass: How many layers are held in memory at once.
        shapes: For made-up feeds, as for `benchmark`.
        seed: For made-up feeds.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        InputError: The outputs cannot be paired, or the feeds do not fit.
        ModelError, ArtifactError, BackendError: One of them cannot be loaded.
    """
    left, right = _opened(a), _opened(b)
    with contextlib.ExitStack() as stack:
        reference, candidate = _session(left, stack), _session(right, stack)
        signature = reference.signature
        if feeds is None:
            source: Iterable[Feed] = generate_feeds(signature, 4, shapes=shapes, seed=seed)
            notes = ["made-up inputs"]
        else:
            source, notes = as_feeds(feeds, signature), []
        pairs = _pairs(reference, candidate, notes)
        outputs, count = _compare_outputs(reference, candidate, pairs, source, progress)
    found: tuple[LayerCloseness, ...] = ()
    if layers and isinstance(left, Model) and isinstance(right, Model):
        found, said = compare_layers(
            left, right, source, tensors_per_pass=tensors_per_pass, progress=progress
        )
        notes += said
    return CompareReport(
        reference=_name(left),
        candidate=_name(right),
        outputs=outputs,
        layers=found,
        threshold_db=threshold_db,
        feeds=count,
        notes=notes,
    )


def _opened(source: Runnable) -> Model | Artifact | Session:
    if isinstance(source, (Model, Artifact, Session)):
        return source
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return Artifact.open(source)
    return Model.load(source)


def _session(source: Model | Artifact | Session, stack: contextlib.ExitStack) -> Session:
    if isinstance(source, Session):
        return source
    artifact = source if isinstance(source, Artifact) else compile_model(source, "onnxruntime")
    return stack.enter_context(load(artifact))


def _name(source: Model | Artifact | Session) -> str:
    if isinstance(source, Model):
        name = source.path.name if source.path else source.ir.graph.name or "model"
        steps = ", ".join(entry.name for entry in source.history)
        return f"{name} after {steps}" if steps else name
    backend, device = (
        (source.backend, source.device)
        if isinstance(source, Session)
        else (source.manifest.backend, source.manifest.device)
    )
    where = source.path.name if isinstance(source, Artifact) and source.path else "the model"
    return f"{where} on {backend}:{device or 'default'}"


def _pairs(reference: Session, candidate: Session, notes: list[str]) -> Sequence[tuple[str, str]]:
    left = [spec.name for spec in reference.signature.outputs]
    right = [spec.name for spec in candidate.signature.outputs]
    if set(left) == set(right):
        return [(name, name) for name in left]
    if len(left) != len(right):
        raise InputError(
            "The two have different outputs, so they cannot be compared.",
            expected=", ".join(left),
            found=", ".join(right),
        )
    notes.append("outputs have other names and are paired by position")
    return list(zip(left, right, strict=True))


def _compare_outputs(
    reference: Session,
    candidate: Session,
    pairs: Sequence[tuple[str, str]],
    feeds: Iterable[Feed],
    progress: bool | None,
) -> tuple[dict[str, Closeness], int]:
    ranks = {spec.name: len(spec.shape or ()) for spec in reference.signature.outputs}
    # (N, classes) and (N, positions, classes); with more axes the last one is a width.
    sums = {left: ClosenessAccumulator(classes=ranks[left] in (2, 3)) for left, _ in pairs}
    count = 0
    for feed in track(feeds, "Comparing outputs", progress=progress):
        expected, found = reference.infer(feed), candidate.infer(feed)
        for left, right in pairs:
            if expected[left].shape != found[right].shape:
                raise InputError(
                    "The two give outputs of different shapes.",
                    where=f"output {left!r}",
                    expected=str(expected[left].shape),
                    found=str(found[right].shape),
                )
            sums[left].update(expected[left], found[right])
        count += 1
    if not count:
        raise InputError("There is no feed to compare on.", expected="at least one")
    return {left: total.result() for left, total in sums.items()}, count
