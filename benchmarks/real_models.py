"""The main job on real models: optimize → compile → save → load → infer, on both runtimes.

    python benchmarks/real_models.py DATA [--subset calib] [--only NAME,…]

DATA holds `models/*.onnx` and `eval_baseline.py` with `TASKS[name] = (task(run, subset), example feed)`,
where `task` returns metrics of a function `run(feed, outputs)`. For each model and runtime one line tells the
first metric of the original in ONNX Runtime, the metric of the session, and the largest difference of any
output relative to the largest value of that output, on three random feeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from shared_data import baselines

import edgeinfer as ei
from edgeinfer.transforms import FuseBatchNorm, Simplify

Run = Callable[..., list[np.ndarray]]


def original(path: Path) -> Run:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda feed, outputs=None: session.run(list(outputs) if outputs else None, feed)


def ours(session: ei.Session) -> Run:
    names = [spec.name for spec in session.signature.outputs]

    def run(feed: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        found = session.infer(feed)
        return [found[name] for name in outputs or names]

    return run


def random_feed(example: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 2, value.shape)
        if value.dtype.kind == "i"
        else rng.standard_normal(value.shape).astype(value.dtype)
        for name, value in example.items()
    }


def difference(reference: Run, run: Run, example: Mapping[str, np.ndarray]) -> float:
    worst = 0.0
    for seed in range(3):
        feed = random_feed(example, seed)
        for a, b in zip(reference(feed), run(feed), strict=True):
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--subset", default="calib", choices=("calib", "eval", "all"))
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    tasks = baselines(arguments.data).TASKS
    print(f"{'model':26s} {'runtime':12s} {'metric':10s} {'before':>8s} {'after':>8s} {'max rel diff':>13s}")
    for name in filter(None, arguments.only.split(",")) if arguments.only else tasks:
        task, example = tasks[name]
        path = arguments.data / "models" / f"{name}.onnx"
        reference = original(path)
        before = task(reference, arguments.subset)
        metric = next(iter(before))
        model = ei.optimize(path, [Simplify(), FuseBatchNorm()])
        for backend in ("onnxruntime", "openvino"):
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder) / "model.edge"
                ei.compile(model, backend).save(saved)
                with ei.load(saved) as session:
                    run = ours(session)
                    worst = difference(reference, run, example)
                    after = task(run, arguments.subset)
            same = abs(after[metric] - before[metric]) <= 1e-3 and worst <= 1e-3
            print(
                f"{name:26s} {backend:12s} {metric:10s} {before[metric]:8.4f} {after[metric]:8.4f} "
                f"{worst:13.2e}{'' if same else '   CHANGED'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
