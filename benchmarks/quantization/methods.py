"""Which corrections pay: QuantizeStatic alone and with each method, on real models.

    python benchmarks/quantization/methods.py ../shared/data [model ...]

For every model and recipe: the output's SQNR against float on evaluation rows, in ONNX Runtime, and the time
that the recipe took. The folder is the one with `eval_baseline.py`, `models/` and `data/`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import edgeinfer as ei
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.transforms import (
    CorrectBias,
    EqualizeWeights,
    FuseBatchNorm,
    RoundWeights,
    Simplify,
    SmoothQuant,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared_data import baselines

MODELS = (
    "cifar10_resnet20",
    "squeezenet1_1",
    "mobilenet_v2_1.0_224",
    "minilm_l6_fp16w",
    "kws_dscnn",
    "vww_mobilenetv1_025_96",
)
CALIBRATION_ROWS = 100
EVALUATION_ROWS = 200

Feeds = list[Mapping[str, np.ndarray]]


class _EnoughError(Exception):
    pass


def rows(tasks: ModuleType, name: str, path: Path, subset: str, most: int) -> Feeds:
    """Return the first feeds that the model's evaluation makes, at least `most` rows or all."""
    taken: Feeds = []
    with ei.load(ei.compile(path, "onnxruntime")) as session:

        def run(feed: Mapping[str, np.ndarray], names: Any = None) -> list[np.ndarray]:
            outputs = session.infer(dict(feed))
            missing = most - sum(len(next(iter(f.values()))) for f in taken)
            taken.append({key: array[:missing] for key, array in feed.items()})
            if len(next(iter(feed.values()))) >= missing:
                raise _EnoughError
            return [outputs[key] for key in names] if names else list(outputs.values())

        with contextlib.suppress(_EnoughError):
            tasks.TASKS[name][0](run, subset)
    return taken


def sqnr_db(float_model: ei.Model, model: ei.Model, feeds: Feeds) -> float:
    """Return the SQNR over all outputs."""
    signal = noise = 0.0
    with (
        ei.load(ei.compile(float_model, "onnxruntime")) as reference,
        ei.load(ei.compile(model, "onnxruntime")) as session,
    ):
        for feed in feeds:
            other = session.infer(feed)
            for key, array in reference.infer(feed).items():
                signal += float((array.astype(np.float64) ** 2).sum())
                noise += float(((array.astype(np.float64) - other[key]) ** 2).sum())
    return float(10 * np.log10(signal / max(noise, 1e-300)))


def recipes(feeds: Feeds, method: str) -> dict[str, list[Any]]:
    """Return the recipes to compare."""
    static = QuantizeStatic(calibration=feeds, method=method)
    smooth = SmoothQuant(calibration=feeds, alpha=None, insert=True)
    rounded, bias = RoundWeights(calibration=feeds), CorrectBias(calibration=feeds)
    return {
        "static": [static],
        "static, bias": [static, bias],
        "static, round": [static, rounded],
        "static, round, bias": [static, rounded, bias],
        "equalize, static": [EqualizeWeights(), static],
        "equalize, static, round, bias": [EqualizeWeights(), static, rounded, bias],
        "smooth, static": [smooth, static],
        "smooth, static, round": [smooth, static, rounded],
    }


def main(data: Path, names: list[str], say: Callable[[str], object] = print) -> None:
    """Measure and print one row for each model and recipe."""
    tasks = baselines(data)
    for name in names:
        path = data / "models" / f"{name}.onnx"
        feeds = rows(tasks, name, path, "calib", CALIBRATION_ROWS)
        held_out = rows(tasks, name, path, "eval", EVALUATION_ROWS)
        model = ei.Pipeline([Simplify(), FuseBatchNorm()]).apply(ei.Model.load(path)).model
        for method in ("minmax", "mse"):
            for label, steps in recipes(feeds, method).items():
                if label.startswith("smooth") and "minilm" not in name:
                    continue
                if label.startswith("equalize") and "minilm" in name:
                    continue
                started = time.perf_counter()
                result = ei.Pipeline(steps).apply(model)
                seconds = time.perf_counter() - started
                quantized = next(step for step in result.report.steps if step.name == "QuantizeStatic")
                ratio = f"{len(quantized.applied)} quantized"
                decibels = sqnr_db(model, result.model, held_out)
                say(f"{name} | {method} | {label} | {ratio} | {decibels:.2f} dB | {seconds:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(MODELS))
