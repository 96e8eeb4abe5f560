"""Accuracy against multiply-accumulates and against measured latency, with no retraining.

    python benchmarks/pruning/curves.py
    python benchmarks/pruning/curves.py --only cifar10_resnet20 --keep 0.8
    python benchmarks/pruning/curves.py --accuracy-only    # anywhere; keeps the models in --cache
    python benchmarks/pruning/curves.py --latency-only     # times the models in --cache

Each point is a model pruned with calibration rows and scored on the evaluation rows, and then timed on both
runtimes in turns with the float model: the processor time of one thread. Methods:

- edgeinfer: PruneChannels, or PruneHeads for the text encoder, by multiply-accumulates or heads kept;
- edgeinfer, latency on ...: PruneChannels with the same part of the latency of that runtime to keep;
- magnitude: plain, ranked by weight norms over all groups in steps of one, nothing refitted;
- calibrated score: what peers do, see `baselines.py`;
- Torch-Pruning: by way of PyTorch, where it is installed;
- 2:4 and its baselines; int8, and pruned and then int8, for the end-to-end figure.

Writes `curves.json` and `curves.png`. Points that are there already are kept; `--again` makes them anew.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgeinfer as ei
from edgeinfer import Target
from edgeinfer.model.model import Model
from edgeinfer.pruning.budget.latency import least_ms
from edgeinfer.transforms import (
    CorrectBias,
    FuseBatchNorm,
    PruneChannels,
    PruneHeads,
    PruneNM,
    QuantizeStatic,
    RoundWeights,
    Simplify,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "quantization"))
import shared_models  # noqa: E402  (it lies beside the other benchmark)
from baselines import calibrated_channels, sparse_gpt, torch_pruning_channels  # noqa: E402

RUNTIMES = ("onnxruntime", "openvino")
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
METRIC = {"nanodet_m_320": "mAP", "minilm_l6_fp16w": "spearman"}
MODELS = ("cifar10_resnet20", "squeezenet1_1", "mobilenet_v2_1.0_224", "nanodet_m_320", "minilm_l6_fp16w")
CURVES = ("edgeinfer", "magnitude", "calibrated score", "Torch-Pruning")
_MARKS = {"edgeinfer, latency on ": "k*", "int8, ": "mP", "pruned + int8, ": "rD"}

Point = dict[str, Any]
Feed = dict[str, np.ndarray]
Job = Callable[[], tuple[Model, Point]]


def calibration(name: str, samples: int) -> list[Feed]:
    """Return calibration rows in batches, where the model takes batches of images."""
    rows = shared_models.calibration(name, samples)
    if name in METRIC:
        return rows
    size = 50 if name.startswith("cifar") else 10
    keys = list(rows[0])
    return [
        {k: np.concatenate([r[k] for r in rows[i : i + size]]) for k in keys}
        for i in range(0, len(rows), size)
    ]


def score(name: str, model: Model, runtime: str = "onnxruntime") -> float:
    """Return the model's metric on the evaluation rows."""
    with ei.load(ei.compile(model, runtime), options={"threads": 1}) as session:
        names = [spec.name for spec in session.signature.outputs]

        def run(feed: Feed, wanted: tuple[str, ...] | None = None) -> list[np.ndarray]:
            got = session.infer({key: np.ascontiguousarray(value) for key, value in feed.items()})
            return [got[key] for key in wanted or names]

        return shared_models.evaluate(name, run)[METRIC.get(name, "top1")]


def kept(data: dict[str, Any]) -> float:
    """Return the part that is left of what the transform counted."""
    cost = next((key[:-7] for key in data if key.endswith("_before")), None)
    return data[f"{cost}_after"] / data[f"{cost}_before"] if cost else 1.0


def pruned(transform: Any, model: Model) -> tuple[Model, Point]:
    """Apply a transform; return the model and the point's first figures."""
    result, report = transform.apply(model)
    return result, {"kept": kept(report.data), "seconds": round(report.seconds, 1)}


def int8(model: Model, feeds: list[Feed], runtime: str, steps: list[Any]) -> tuple[Model, Point]:
    """Optimize in one pipeline: what `steps` are, then quantize and correct."""
    started = time.perf_counter()
    after = [
        QuantizeStatic(calibration=feeds),
        RoundWeights(calibration=feeds),
        CorrectBias(calibration=feeds),
    ]
    result = ei.optimize(model, [Simplify(), FuseBatchNorm(), *steps, *after], target=runtime)
    return result, {"seconds": round(time.perf_counter() - started, 1), "runtime": runtime}


def jobs(
    name: str, model: Model, feeds: list[Feed], keeps: list[float]
) -> dict[tuple[str, str], Callable[[], tuple[Model, Point]]]:
    """Return what is to be made, by method and what was asked."""
    made: dict[tuple[str, str], Callable[[], tuple[Model, Point]]] = {}
    heads = name.startswith("minilm")
    for keep in keeps:
        asked = f"{keep:g}"
        ours = PruneHeads(keep, calibration=feeds) if heads else PruneChannels(keep, calibration=feeds)
        plain = (
            PruneHeads(keep) if heads else PruneChannels(keep, criterion="magnitude", measure=0, multiple=1)
        )
        made["edgeinfer", asked] = partial(pruned, ours, model)
        made["magnitude", asked] = partial(pruned, plain, model)
        if not heads:
            made["calibrated score", asked] = partial(_calibrated, model, feeds, keep)
    if not heads:
        for runtime in RUNTIMES:
            timed = PruneChannels(keep_latency=0.8, calibration=feeds, target=runtime)
            made[f"edgeinfer, latency on {TITLES[runtime]}", "0.8"] = lambda timed=timed: pruned(timed, model)
            made[f"int8, {TITLES[runtime]}", "1"] = lambda runtime=runtime: int8(model, feeds, runtime, [])
            steps = [PruneChannels(0.8, calibration=feeds, target=runtime)]
            made[f"pruned + int8, {TITLES[runtime]}", "0.8"] = lambda runtime=runtime, steps=steps: int8(
                model, feeds, runtime, steps
            )
    if name in ("cifar10_resnet20", "squeezenet1_1"):
        made["2:4 edgeinfer", "2:4"] = partial(pruned, PruneNM(calibration=feeds), model)
        made["2:4 magnitude", "2:4"] = partial(pruned, PruneNM(), model)
        made["2:4 SparseGPT", "2:4"] = lambda: (sparse_gpt(model, feeds), {})
    return made


def _calibrated(model: Model, feeds: list[Feed], keep: float) -> tuple[Model, Point]:
    result, left = calibrated_channels(model, feeds, keep)
    return result, {"kept": left}


def by_torch(name: str, path: Path, keep: float) -> Point | None:
    """Return Torch-Pruning's point; None where it is not installed."""
    try:
        run, left = torch_pruning_channels(str(path), shared_models.example(name), keep)
        return {"score": shared_models.evaluate(name, run)[METRIC.get(name, "top1")], "kept": left}
    except ImportError:
        return None
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def times(name: str, model: Model, other: Model) -> Point:
    """Return the latencies of both models, and the part of the first that the second takes, by runtime."""
    entry: Point = {}
    for runtime in RUNTIMES:
        before, after = least_ms(
            [model, other], shared_models.example(name), Target.parse(runtime), seconds=4.0
        )
        entry[runtime] = round(after / before, 4)
        entry[f"{runtime}_ms"] = [round(before, 4), round(after, 4)]
    return entry


def picture(points: list[Point], path: Path) -> None:
    """Draw a row of three curves for each model."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in MODELS if any(p["model"] == name for p in points)]
    figure, grid = plt.subplots(len(names), 3, figsize=(13, 3 * len(names)), squeeze=False)
    columns = [("kept", "cost kept (MACs; heads)"), *((r, f"latency, {TITLES[r]}") for r in RUNTIMES)]
    for axes, name in zip(grid, names, strict=True):
        here = [p for p in points if p["model"] == name and "score" in p]
        for axis, (column, title) in zip(axes, columns, strict=True):
            for label, mark in zip(CURVES, ("o-", "s--", "^--", "v--"), strict=True):
                line = [p for p in here if p["method"] in (label, "float") and column in p]
                line.sort(key=lambda p: -p["kept"])
                if len(line) > 1:
                    axis.plot([p[column] for p in line], [p["score"] for p in line], mark, label=label)
            for p in here if column in RUNTIMES else ():
                mark = _MARKS.get(p["method"].removesuffix(TITLES[column]))
                if mark is not None and column in p:
                    axis.plot(p[column], p["score"], mark, ms=8, label=p["method"])
            axis.set_title(f"{name}: {METRIC.get(name, 'top1')}", fontsize=9)
            axis.set_xlabel(f"{title}, part of float", fontsize=8)
            axis.grid(alpha=0.3)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Make the points that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--cache", type=Path, default=Path("build/pruning"), help="for pruned models")
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--methods", default="", help="a regular expression that the method's name matches")
    parser.add_argument("--keep", default="0.9,0.8,0.7")
    parser.add_argument("--samples", type=int, default=256, help="at most; the ImageNet rows give 50")
    parser.add_argument("--again", action="store_true", help="make points anew")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--accuracy-only", action="store_true")
    part.add_argument("--latency-only", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.cache.mkdir(parents=True, exist_ok=True)
    store = options.out / "curves.json"
    points: list[Point] = json.loads(store.read_text()) if store.exists() else []

    def find(model: str, method: str, asked: str) -> Point | None:
        same = (p for p in points if (p["model"], p["method"], p["asked"]) == (model, method, asked))
        return next(same, None)

    def add(point: Point) -> None:
        old = find(point["model"], point["method"], point["asked"])
        points[:] = [p for p in points if p is not old] + [point]
        store.write_text(json.dumps(points, indent=1) + "\n")
        print(json.dumps(point), flush=True)

    keeps = [float(text) for text in options.keep.split(",")]
    for name in options.only.split(","):
        path = shared_models.path(name)
        model = Model.load(path)
        if find(name, "float", "1") is None:
            ones = {"kept": 1.0, **dict.fromkeys(RUNTIMES, 1.0)}
            add({"model": name, "method": "float", "asked": "1", "score": score(name, model), **ones})
        feeds = [] if options.latency_only else calibration(name, options.samples)
        for (method, asked), make in jobs(name, model, feeds, keeps).items():
            if not re.search(options.methods, method):
                continue
            file = (
                options.cache
                / f"{name}__{re.sub('[^a-z0-9]+', '-', method.lower())}__{asked.replace(':', '-')}.onnx"
            )
            point = find(name, method, asked)
            if not options.latency_only and (options.again or point is None or not file.exists()):
                result, figures = make()
                result.save(file)
                scored = score(name, result, figures.get("runtime", "onnxruntime"))
                point = {"model": name, "method": method, "asked": asked, "score": scored, **figures}
                add(point)
            if not options.accuracy_only and file.exists() and point is not None:
                add({**point, **times(name, model, Model.load(file))})
        for keep in [] if options.latency_only or name in METRIC else keeps:
            if (
                re.search(options.methods, "Torch-Pruning")
                and find(name, "Torch-Pruning", f"{keep:g}") is None
            ):
                found = by_torch(name, path, keep)
                if found is not None:
                    add({"model": name, "method": "Torch-Pruning", "asked": f"{keep:g}", **found})
    picture(points, options.out / "curves.png")


if __name__ == "__main__":
    main()
