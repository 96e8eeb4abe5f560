"""`compare`: how close one model's answers are to another's, and where they begin to differ."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs
import numpy as np
import onnx
import onnx_ir as ir

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.registry import get_backend, require_available
from edgeinfer.devices.profile import Target
from edgeinfer.display import track
from edgeinfer.errors import (
    BackendUnavailableError,
    DeviceError,
    InputError,
    OptionsError,
    TargetError,
)
from edgeinfer.feeds.choose import shapes_of_feeds
from edgeinfer.feeds.feeds import Feed, Feeds
from edgeinfer.feeds.generate import generate_feeds
from edgeinfer.feeds.shapes import InputShape, Shapes, input_shapes
from edgeinfer.graph.build import compile_model
from edgeinfer.measure.compare_report import DEFAULT_SQNR_DB, CompareReport
from edgeinfer.measure.layers import LayerCloseness, compare_layers
from edgeinfer.model.model import Model
from edgeinfer.numerics.closeness import Closeness, ClosenessAccumulator
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__ = ["Runnable", "compare"]

Runnable: TypeAlias = (
    "Model | Artifact | Session | str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model"
)
_REFERENCE = "onnxruntime"


def compare(
    a: Runnable,
    b: Runnable,
    feeds: Any = None,
    *,
    target: Target | str | None = None,
    layers: bool = True,
    threshold_db: float = DEFAULT_SQNR_DB,
    tensors_per_pass: int = 16,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CompareReport:
    """Compare a candidate with its reference on the same inputs.

    A model runs on the target that it was made for, if that is here; one that was made for none runs in
    ONNX Runtime on the CPU. The report says where each ran.

    When both are models, they are compared layer by layer as well, in ONNX Runtime: every tensor whose name
    both graphs have (transforms keep the names of what they keep; a quantized model has the float tensor
    before each QuantizeLinear). Tensors that a transform scaled are put on one scale. They are computed a few
    at a time, so memory stays flat however deep the model is.

    Args:
        a: The reference: a model or where to load it from, an artifact or its directory, or a session.
        b: The candidate, in the same forms.
        feeds: One feed, many, or a source of them as for `Feeds.of`, gone through several times. None: 4 made
            up from the reference's signature.
        target: Where models run, instead of what they were made for.
        layers: Compare layer by layer where both are models.
        threshold_db: The SQNR below which a layer has gone wrong. 20 dB is an error of a tenth of the signal.
        tensors_per_pass: How many layers are held in memory at once.
        shapes: For made-up feeds, as for `benchmark`.
        batch: As for `benchmark`.
        seed: For made-up feeds.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        InputError: The outputs cannot be paired, or the feeds do not fit.
        OptionsError: A number is out of range.
        ModelError, ArtifactError, BackendError: One of them cannot be loaded.
    """
    if not np.isfinite(threshold_db):
        raise OptionsError("threshold_db is out of range.", expected="a finite number", found=threshold_db)
    left, right = _opened(a), _opened(b)
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        reference, candidate = (_session(side, target, stack, notes) for side in (left, right))
        ran_on = tuple(f"{each.backend}:{each.device or 'default'}" for each in (reference, candidate))
        signature = reference.signature
        inputs: tuple[InputShape, ...] = ()
        if feeds is None:
            source = Feeds.of(generate_feeds(signature, 4, shapes=shapes, batch=batch, seed=seed), signature)
            inputs = input_shapes(signature, shapes, batch=batch)
            notes.append("made-up inputs")
        else:
            source = Feeds.of(feeds, signature)
            source = source if batch is None else source.batched(batch)
        pairs = _pairs(reference, candidate, notes)
        seen = _Shapes(source)
        outputs, unlike = _compare_outputs(reference, candidate, pairs, seen, progress)
        notes += [*unlike, *source.notes]
    if feeds is not None:
        inputs, more = seen.found(signature)
        notes += more
    found: tuple[LayerCloseness, ...] = ()
    if layers and isinstance(left, Model) and isinstance(right, Model):
        found, said = compare_layers(
            left, right, source, tensors_per_pass=tensors_per_pass, progress=progress
        )
        notes += said
        if any(not place.startswith(f"{_REFERENCE}:") for place in ran_on):
            notes.append("layers are compared in ONNX Runtime")
    return CompareReport(
        reference=_name(left),
        candidate=_name(right),
        reference_on=ran_on[0],
        candidate_on=ran_on[1],
        outputs=outputs,
        layers=found,
        threshold_db=threshold_db,
        feeds=seen.count,
        inputs=inputs,
        notes=notes,
    )


def _opened(source: Runnable) -> Model | Artifact | Session:
    if isinstance(source, (Model, Artifact, Session)):
        return source
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return Artifact.open(source)
    return Model.load(source)


def _session(
    source: Model | Artifact | Session,
    target: Target | str | None,
    stack: contextlib.ExitStack,
    notes: list[str],
) -> Session:
    if isinstance(source, Session):
        return source
    if isinstance(source, Artifact):
        return stack.enter_context(load(source))
    if target is not None:
        return stack.enter_context(load(compile_model(source, target)))
    if source.target is None:
        return stack.enter_context(load(compile_model(source, _REFERENCE)))
    try:
        made_for = Target.parse(source.target)
        require_available(get_backend(made_for.backend))
        return stack.enter_context(load(compile_model(source, made_for)))
    except (TargetError, BackendUnavailableError, DeviceError) as error:
        notes.append(
            f"{_name(source)} was made for {source.target} and runs in ONNX Runtime instead, because that is "
            f"not here: {error.what}"
        )
        return stack.enter_context(load(compile_model(source, _REFERENCE)))


def _name(source: Model | Artifact | Session) -> str:
    if isinstance(source, Model):
        name = source.path.name if source.path else source.ir.graph.name or "model"
        steps = ", ".join(entry.name for entry in source.history)
        return f"{name} after {steps}" if steps else name
    return source.path.name if isinstance(source, Artifact) and source.path else "the model"


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


@final
@attrs.define(eq=False)
class _Shapes:
    """Feeds that remember the shapes of one pass."""

    feeds: Iterable[Feed]
    passed: list[dict[str, np.ndarray]] = attrs.field(factory=list)

    def __iter__(self) -> Iterator[Feed]:
        for feed in self.feeds:
            # Of these only the shape takes memory.
            self.passed.append(
                {name: np.broadcast_to(np.zeros((), bool), array.shape) for name, array in feed.items()}
            )
            yield feed

    def __length_hint__(self) -> int:
        return length_hint(self.feeds)

    @property
    def count(self) -> int:
        """How many feeds there were."""
        return len(self.passed)

    def found(self, signature: Signature) -> tuple[tuple[InputShape, ...], tuple[str, ...]]:
        """Return the shapes of the first, and a note when others have others."""
        return shapes_of_feeds(signature, self.passed)


def _compare_outputs(
    reference: Session,
    candidate: Session,
    pairs: Sequence[tuple[str, str]],
    feeds: Iterable[Feed],
    progress: bool | None,
) -> tuple[Mapping[str, Closeness], list[str]]:
    """Return the closeness of each output, and notes on those that cannot be compared as numbers."""
    specs = {spec.name: spec for spec in reference.signature.outputs}
    # (N, classes) and (N, positions, classes); with more axes the last one is a width.
    sums = {
        left: ClosenessAccumulator(classes=len(specs[left].shape or ()) in (2, 3))
        for left, _ in pairs
        if specs[left].dtype != object
    }
    texts = {left: [0, 0] for left, _ in pairs if left not in sums}
    unlike: dict[str, int] = {}
    count = 0
    for feed in track(feeds, "Comparing outputs", progress=progress):
        expected, found = reference.infer(feed), candidate.infer(feed)
        for left, right in pairs:
            if expected[left].shape != found[right].shape:
                unlike[left] = unlike.get(left, 0) + 1
            elif left in sums:
                sums[left].update(expected[left], found[right])
            else:
                texts[left][0] += int((expected[left] == found[right]).sum())
                texts[left][1] += expected[left].size
        count += 1
    if not count:
        raise InputError("There is no feed to compare on.", expected="at least one")
    compared = {name: total.result() for name, total in sums.items() if name not in unlike}
    notes = [f"output {name!r} is text: {same} of {total} equal" for name, (same, total) in texts.items()]
    notes += [
        f"output {name!r} has another shape in {often} of {count} feeds and is not compared"
        for name, often in unlike.items()
    ]
    if not compared:
        raise InputError(
            "No output can be compared as numbers.", found="; ".join(notes), expected="outputs of like shapes"
        )
    return compared, notes
