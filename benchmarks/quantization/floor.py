"""How many decibels a model needs to keep its metric: what the default floor of `QuantizeInt8` is from.

    python benchmarks/quantization/floor.py [MODEL...]

The float weights of each shared model get noise of several sizes; for each, the lower end of the SQNR of the
outputs on 24 feeds (as `QuantizeInt8` judges it, in closed loop where states come back) stands beside what is
lost of the task's metric on the evaluation rows, in points.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import shared_models as shared
from run_table import METRIC

import edgeinfer as ei
from edgeinfer.quantization.search.closed_loop import find_feedback
from edgeinfer.quantization.search.model_runs import Loop, run_outputs
from edgeinfer.quantization.search.output_score import Scorer

MODELS = ("kws_dscnn", "vww_mobilenetv1_025_96", "silero_vad_16k", "nanodet_m_320", "cifar10_resnet8_mlperf")
SIZES = (0.01, 0.02, 0.04, 0.06, 0.08, 0.12)  # of a weight's standard deviation
FEEDS = 24


def noisy(model: ei.Model, size: float) -> ei.Model:
    """Return the model with noise on every weight tensor of two or more axes."""
    rng = np.random.default_rng(0)
    proto = model.to_proto()
    import onnx

    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim >= 2 and array.dtype == np.float32:
            noise = rng.standard_normal(array.shape) * size * array.std()
            tensor.CopyFrom(onnx.numpy_helper.from_array((array + noise).astype(np.float32), tensor.name))
    return ei.Model.load(proto)


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        model = ei.optimize(shared.path(name), [ei.transforms.Simplify(widen_weights=True)])
        feeds = shared.calibration(name, FEEDS)
        back = find_feedback(model, feeds).back
        loop = Loop(back=back) if back else None
        scorer = Scorer(model, run_outputs(model, feeds, loop=loop))
        key = METRIC.get(name)

        def metric(each: ei.Model, name: str = name, key: str | None = key) -> float:
            found = shared.evaluate(name, shared.ort_run(each.to_bytes()))
            return found[key or next(iter(found))]

        whole = metric(model)
        for size in SIZES:
            other = noisy(model, size)
            score = scorer.score(run_outputs(other, feeds, loop=loop))
            row = {
                "model": name,
                "noise": size,
                "at_least_db": round(score.lower_db, 1),
                "sqnr_db": round(score.sqnr_db, 1),
                "points_lost": round(100 * (whole - metric(other)), 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
