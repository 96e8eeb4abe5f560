"""What pays where: one model in every precision, dense and 2:4 sparse, at several batches.

One engine is built, measured, and then the next, in the order of importance: builds beside each other time
their kernels against each other, and eight at a time took ten times as long as one. Measured are the latency
of the bound mode and of plain `infer`, and how close the outputs are to float32 in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from models import ONE_AT_A_TIME, SHAPES, feeds_of, in_precision, open_model, read_samples
from results import Results, difference, latency

import edgeinfer as ei
from edgeinfer.display import Table
from edgeinfer.transforms import FixShapes

__all__ = ["VARIANTS", "Prepared", "Variant", "precision_part", "precision_table", "prepare_part"]


@attrs.frozen
class Variant:
    """One way to run a model: its precision in the graph, and what the builder is told."""

    precision: str
    sparse: bool = False
    options: Mapping[str, Any] = attrs.field(factory=dict)


_BOTH = {"weak_precisions": ("float16", "int8")}
VARIANTS = {
    "float16": Variant("float16"),
    "int8": Variant("int8"),
    "int8, float16 permitted": Variant("int8", False, _BOTH),
    "float32": Variant("float32"),
    "tf32": Variant("float32", False, {"tf32": True}),
    "float16, 2:4": Variant("float16", True, {"sparse_weights": True}),
    "int8, float16 permitted, 2:4": Variant("int8", True, {**_BOTH, "sparse_weights": True}),
}


def prepare(folder: Path, name: str, out: Path, samples: Path | None) -> dict[tuple[str, bool], Path]:
    """Write a model in each precision, dense and pruned, with its batch left open; return the files."""
    made = {}
    model = open_model(folder, name)
    for variant in VARIANTS.values():
        key = (variant.precision, variant.sparse)
        path = out / f"{name}-{variant.precision}{'-2of4' if variant.sparse else ''}.onnx"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            in_precision(
                name, model, variant.precision, samples=samples, sparse=variant.sparse, fixed=False
            ).save(path)
        made[key] = path
    return made


def build(
    path: Path, name: str, variant: str, batch: int, options: Mapping[str, Any], scratch: Path
) -> dict[str, Any]:
    """Build an engine into `scratch`, unless it is there, and return its file with what it cost."""
    out = scratch / "engines" / f"{name}-{variant.replace(' ', '')}-{batch}.edge"
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if not out.exists():
        fixed = {key: (batch, *shape[1:]) for key, shape in SHAPES[name].items()}
        chosen = {**options, **VARIANTS[variant].options}
        model = ei.optimize(path, [FixShapes(fixed)])
        ei.compile(model, "tensorrt", options=chosen, cache_dir=scratch / "cache").save(out)
    size = (out / "model.engine").stat().st_size
    return {"path": out, "build_s": round(time.monotonic() - started, 1), "engine_mb": size / 1e6}


def evaluation(name: str, model: ei.Model, samples: Path | None) -> tuple[list[dict[str, Any]], Any]:
    """Return inputs to judge outputs by, and their labels, of `SAMPLES/NAME.npz`."""
    if samples is None or not (samples / f"{name}.npz").is_file():
        return feeds_of(name, model, 16, seed=7), None
    rows, labels = read_samples(samples / f"{name}.npz", "evaluation")
    return [{model.signature.inputs[0].name: row[None]} for row in rows], labels


def reference(path: Path, name: str, feeds: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """Return the outputs in float32 of ONNX Runtime on the CPU."""
    with ei.load(ei.compile(ei.optimize(path, [FixShapes(SHAPES[name])]), "onnxruntime")) as session:
        return [session.infer(feed) for feed in feeds]


def quality(session: Any, feeds: list[dict[str, Any]], wanted: list[dict[str, np.ndarray]], labels: Any):
    """Return how close outputs are, and for classifiers how often the first class agrees and is right."""
    found = [session.infer(feed) for feed in feeds]
    row: dict[str, Any] = difference(_stacked(found), _stacked(wanted))
    if len(wanted[0]) == 1:
        ours, theirs = (next(iter(_stacked(side).values())) for side in (found, wanted))
        first, same = ours.reshape(len(feeds), -1).argmax(1), theirs.reshape(len(feeds), -1).argmax(1)
        row["agreement"] = float((first == same).mean())
        if labels is not None:
            row |= {"top1": float((first == labels).mean()), "float top1": float((same == labels).mean())}
    return row | {"samples": len(feeds)}


def _stacked(outputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}


def measure(path: Path, name: str, batch: int, judged: tuple[Any, Any, Any] | None) -> dict[str, Any]:
    """Return latency in the bound mode and of `infer`, throughput and, at batch 1, closeness to float32."""
    rng = np.random.default_rng(0)
    with ei.load(path) as session:
        feed = {
            spec.name: (rng.standard_normal((batch, *SHAPES[name][spec.name][1:])) * 0.5).astype(spec.dtype)
            for spec in session.signature.inputs
        }
        with session.bind() as binding:
            for key, value in feed.items():
                binding.inputs[key][...] = value
            bound = latency(binding.run, 1.0)
        row: dict[str, Any] = {"bound": bound, "infer": latency(lambda: session.infer(feed), 0.7)}
        row["per_s"] = batch / bound["p50_ms"] * 1e3
        row["precisions"] = session.execution().precisions
        if judged is not None and batch == 1:
            row["quality"] = quality(session, *judged)
    return row


@attrs.frozen
class Prepared:
    """A model in each precision, dense and pruned, and what its outputs are judged by."""

    files: Mapping[tuple[str, bool], Path]
    judged: tuple[list[dict[str, Any]], list[dict[str, np.ndarray]], Any]


def prepare_part(
    results: Results, folder: Path, names: list[str], samples: Path | None, out: Path
) -> dict[str, Prepared]:
    """Write each model in each precision, and run it in float32."""
    made: dict[str, Prepared] = {}
    for name in names:

        def make(name: str = name) -> dict[str, Any]:
            files = prepare(folder, name, out, samples)
            plain = files["float32", False]
            feeds, labels = evaluation(name, ei.Model.load(plain), samples)
            made[name] = Prepared(files, (feeds, reference(plain, name, feeds), labels))
            return {"samples": len(feeds)}

        results.step(make, step="prepare", model=name)
    return made


def precision_part(
    results: Results,
    models: Mapping[str, Prepared],
    options: Mapping[str, Any],
    batches: tuple[int, ...] = (1, 32),
    variants: tuple[str, ...] = tuple(VARIANTS),
) -> None:
    """Build and measure one engine after the other; rows as they come."""
    for batch in batches:
        for variant in variants:
            for name, model in models.items():
                if batch != 1 and name in ONE_AT_A_TIME:
                    continue
                path = model.files[VARIANTS[variant].precision, VARIANTS[variant].sparse]

                def run(
                    path: Path = path,
                    name: str = name,
                    variant: str = variant,
                    batch: int = batch,
                    judged: Any = model.judged,
                ) -> dict[str, Any]:
                    built = build(path, name, variant, batch, options, results.scratch)
                    return built | measure(built["path"], name, batch, judged)

                results.step(run, step="precision", model=name, variant=variant, batch=batch)


def precision_table(rows: list[dict[str, Any]]) -> str:
    """Return the measured rows as a table."""
    cells = []
    for row in rows:
        if row["step"] != "precision" or "error" in row:
            continue
        found = row.get("quality", {})
        cells.append(
            (
                *(row["model"], row["batch"], row["variant"]),
                f"{row['bound']['p50_ms']:.3f}",
                f"{row['bound']['p99_ms']:.3f}",
                f"{row['infer']['p50_ms']:.3f}",
                f"{row['per_s']:.0f}",
                *(f"{found[k]:.5f}" if k in found else "" for k in ("cosine", "agreement", "top1")),
                f"{row['build_s']:.0f}",
                f"{row['engine_mb']:.1f}",
            )
        )
    columns = (
        *("model", "batch", "variant", "bound p50", "bound p99", "infer p50", "a second"),
        *("cosine", "agreement", "top-1", "build s", "MB"),
    )
    title = "ms, host to host; cosine and agreement of the first class against ONNX Runtime CPU float32"
    return str(Table(title=title, columns=columns, rows=sorted(cells, key=lambda cell: cell[:2])))
