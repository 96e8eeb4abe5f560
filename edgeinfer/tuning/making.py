"""From a candidate to its model: the transforms that its decisions stand for. Runs in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.estimate.reference import local_reference
from edgeinfer.estimate.workload import workload
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.graph.build import compile_model
from edgeinfer.graph.channels.groups import analyze
from edgeinfer.graph.taps import reference_session
from edgeinfer.measure.inspection import inspect
from edgeinfer.measure.layer_times import measure_layers
from edgeinfer.model.model import Model
from edgeinfer.quantization.qdq.marks import quantized_for
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.output_score import Scorer
from edgeinfer.quantization.search.sensitivity import sensitivity
from edgeinfer.runtime.open import load
from edgeinfer.transforms import (
    CorrectBias,
    FixShapes,
    FuseBatchNorm,
    PruneChannels,
    PruneHeads,
    QuantizeDynamic,
    QuantizeInt8,
    QuantizeStatic,
    QuantizeWeights,
    RoundWeights,
    Simplify,
    ToFloat16,
)
from edgeinfer.transforms.contract import Transform
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.inputs import in_batches
from edgeinfer.tuning.recipe import Recipe
from edgeinfer.tuning.space import KEEP_MACS

__all__ = ["make", "measure_sensitivity", "prepare", "time_layers", "transforms_of"]

JUDGED = 16  # feeds that closeness is judged on
_MOST_DB = 200.0  # what JSON can hold in place of equal outputs
_SENSITIVITY_SAMPLES = 4


def prepare(folder: Path, target: Target, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Simplify and fuse the model, and say what it consists of.

    Args:
        folder: Has `original.onnx`; gets `prepared.onnx` and `prepared.recipe`.
        target: The target.
        shapes: The shapes of one feed.
    """
    original = Model.load(folder / "original.onnx")
    model, recipe = Recipe.record(original, (Simplify(widen_weights=True), FuseBatchNorm()))
    model.save(folder / "prepared.onnx")
    recipe.save(folder / "prepared.recipe")
    stock = inspect(model, shapes=shapes)
    kinds = {group.kind for group in analyze(model.copy_ir().graph).groups}
    prunes = [name for kind, name in (("channel", "channels"), ("head", "heads")) if kind in kinds]
    return {
        "digest": model.digest,
        "layers": [[node.node, node.op_type, node.macs] for node in stock.nodes if node.macs],
        "prunes": prunes,
        "changes_nothing": _without_effect(model, target),
        "weight_bytes": stock.weight_bytes,
        "pruned": {str(keep): ratio for keep, ratio in _priced(model, target, shapes).items()},
    }


def _without_effect(model: Model, target: Target) -> list[str]:
    """Return `dynamic` where it finds nothing in the model, so that it is not tried in pruned ones either."""
    try:
        steps = Recipe.record(model, transforms_of(Candidate(precision="dynamic"), target, None))[1].steps
    except EdgeInferError:
        return []  # the candidate fails, and says why
    return [] if steps else ["dynamic"]


def _priced(model: Model, target: Target, shapes: Mapping[str, tuple[int, ...]]) -> dict[float, float]:
    """Return the part of the latency that is left for each part of the products, by the prices of kernels."""
    work = workload(model, shapes=shapes, target=target)
    prices = local_reference(target.backend)
    whole = prices.latency_us(work)
    if not whole:
        return {}
    return {keep: prices.latency_us(work.pruned(keep)) / whole for keep in KEEP_MACS}


def transforms_of(candidate: Candidate, target: Target, calibration: Any) -> tuple[Transform, ...]:
    """Return the transforms that a candidate stands for, for the prepared float model."""
    steps: list[Any] = []
    if candidate.fixed:
        shapes = {name: array.shape for name, array in calibration.first().items()}
        steps.append(FixShapes(shapes=shapes))
    if candidate.prune == "channels":
        steps.append(
            PruneChannels(keep_macs=candidate.keep, calibration=calibration, target=target, progress=False)
        )
    elif candidate.prune == "heads":
        steps.append(PruneHeads(keep=candidate.keep, calibration=calibration, progress=False))
    if candidate.precision == "float16":
        steps.append(ToFloat16())
    elif candidate.precision == "dynamic":
        steps.append(QuantizeDynamic(target=target))
    elif candidate.precision == "weights8":
        steps.append(QuantizeWeights(bits=8))
    elif candidate.precision == "int8":
        steps += _int8(candidate, target, calibration)
    return tuple(steps)


def _int8(candidate: Candidate, target: Target, calibration: Any) -> list[Any]:
    if candidate.effort == "searched":
        # The tuner measures speed itself, on what comes out in the end.
        return [
            QuantizeInt8(
                calibration=calibration,
                target=target,
                method=candidate.method or None,
                keep_float=candidate.keep_float,
                min_sqnr_db=-_MOST_DB,
                spend=0.0,
                measure=False,
            )
        ]
    steps: list[Any] = [
        QuantizeStatic(
            calibration=calibration, target=target, method=candidate.method, keep_float=candidate.keep_float
        )
    ]
    if candidate.effort == "corrected":
        steps += [RoundWeights(calibration=calibration), CorrectBias(calibration=calibration)]
    return steps


def make(
    folder: Path, candidate: Candidate, target: Target, options: Mapping[str, Any], *, here: bool
) -> dict[str, Any]:
    """Make a candidate's model, save it with its recipe, and say how close its outputs are.

    Args:
        folder: As `prepare` left it, with `feeds`.
        candidate: The candidate.
        target: The target.
        options: The backend's options to run it with.
        here: Whether the target's backend runs on this machine; if not, the reference runtime judges.
    """
    original = Model.load(folder / "original.onnx")
    prepared = Model.load(folder / "prepared.onnx")
    fit, judged = Feeds.of(folder / "feeds", original.signature).hold_out(JUDGED)
    model, recipe = Recipe.record(prepared, transforms_of(candidate, target, fit))
    notes = []
    quantized = quantized_for(model.ir) is not None
    if candidate.precision == "int8" and not quantized:
        return {"outcome": "refused", "reason": "nothing in the model runs in int8 on this target"}
    before = recipe.steps[0].digest if candidate.fixed else prepared.digest
    if candidate.precision != "float32" and model.digest == before:
        return {"outcome": "refused", "reason": f"nothing in the model became {candidate.precision}"}
    whole = Recipe.load(folder / "prepared.recipe").then(recipe)
    model.save(folder / f"{candidate.model_key}.onnx")
    whole.save(folder / f"{candidate.model_key}.recipe")
    with reference_session(original) as session:
        reference = [list(session.infer(feed).values()) for feed in judged]
    if here:
        with load(compile_model(model, target, options=dict(options) or None, trial=False)) as session:
            outputs = [list(session.infer(feed).values()) for feed in judged]
    else:
        notes.append("closeness was judged in the reference runtime: the target is not on this machine")
        with reference_session(model) as session:
            outputs = [list(session.infer(feed).values()) for feed in judged]
    score = Scorer(original, reference).score(outputs)
    stock = inspect(model, shapes={name: array.shape for name, array in judged[0].items()})
    integer = integer_nodes(model.ir) if quantized else set()
    return {
        "outcome": "ok",
        "digest": model.digest,
        "sqnr_db": _finite(score.sqnr_db),
        "rank_db": _finite(score.rank_db),
        "macs": stock.macs,
        "weight_bytes": stock.weight_bytes,
        "float_layers": [
            node.node for node in stock.nodes if quantized and node.macs and node.node not in integer
        ],
        "notes": [*notes, *(note for step in recipe.steps for note in step.decisions.get("notes", ()))],
    }


def measure_sensitivity(folder: Path, target: Target) -> dict[str, Any]:
    """Return each layer with the SQNR in dB when it alone runs in int8, the lowest first."""
    prepared = Model.load(folder / "prepared.onnx")
    feeds = Feeds.of(folder / "feeds", prepared.signature)
    report = sensitivity(
        prepared, feeds, target=target, samples=_SENSITIVITY_SAMPLES, method="minmax", progress=False
    )
    return {"layers": [[layer.node, _finite(layer.sqnr_db)] for layer in report.layers]}


def time_layers(folder: Path, candidate: Candidate, target: Target) -> dict[str, Any]:
    """Return microseconds of each layer of a candidate's model, by the runtime's profiler."""
    model = Model.load(folder / f"{candidate.model_key}.onnx")
    feed = Feeds.of(folder / "feeds", model.signature).first()
    batch = in_batches([feed], candidate.batch)[:1]
    return {"us": measure_layers(model, batch, target=target, options=candidate.narrow).by_node}


def _finite(db: float) -> float:
    return float(max(-_MOST_DB, min(_MOST_DB, db)))
