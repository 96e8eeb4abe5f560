"""The table of quantizers: ours beside the peers, in ONNX Runtime and OpenVINO, measured in one run.

    python benchmarks/quantization/peers_table.py [--peer-python PYTHON] [--peer-metrics] [--reuse] OUT MODEL

Ours is one call, `optimize(model, target=..., calibration=...)`. The peers quantize in an environment of
their own, which is made and filled when none is given (`peers.py`). For each cell: the metric on the
evaluation rows (the peers' only with --peer-metrics: it takes long), the SQNR of the outputs against float
on at least 200 evaluation rows, the speed-up over the same runtime's float32 on one thread (see `speedup`).
Lines are printed and appended to OUT/table.jsonl as they are measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
import venv
from pathlib import Path

import numpy as np
import shared_models as shared
from run_table import METRIC, speedup, sqnr_db

import edgeinfer as ei

PEERS = (
    ("ort", "onnx", "onnxruntime"),
    ("ort", "onnx", "openvino"),
    ("nncf_ov", "xml", "openvino"),
    ("nncf_onnx", "onnx", "openvino"),
)


def make_peers(out: Path, python: str | None, names: list[str]) -> None:
    if python is None:
        folder = out / "venv"
        venv.create(folder, with_pip=True)
        python = str(folder / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "nncf", "onnx", "onnxruntime", "openvino", "pillow"],
            check=True,
        )
    script = Path(__file__).with_name("peers.py")
    subprocess.run([python, str(script), str(out), *names], check=True)


def run_in(backend: str, model: str | bytes, name: str, *, fixed: bool) -> shared.Run:
    if backend == "onnxruntime":
        return shared.ort_run(model)
    shapes = {key: value.shape for key, value in shared.example(name).items()} if fixed else None
    return shared.openvino_run(model, shapes)


def measure(
    name: str, backend: str, model: str | bytes, *, metric: bool, seconds: float
) -> dict[str, object]:
    original = str(shared.path(name))
    run_float, run = (run_in(backend, each, name, fixed=False) for each in (original, model))
    pairs = [(run_float(feed), run(feed)) for feed in shared.evaluation_feeds(name)]
    closeness = [sqnr_db([a[i] for a, _ in pairs], [b[i] for _, b in pairs]) for i in range(len(pairs[0][0]))]
    feed = shared.example(name)
    fast_float, fast = (run_in(backend, each, name, fixed=True) for each in (original, model))
    ratio, int_ms = speedup(lambda: fast_float(feed), lambda: fast(feed), seconds)
    cell: dict[str, object] = {
        "sqnr_db": round(min(float(np.mean(closeness)), 200.0), 1),
        "speedup": round(ratio, 2),
        "ms": round(int_ms, 4),
    }
    if metric:
        metrics = shared.evaluate(name, run)
        cell["metric"] = round(metrics[METRIC.get(name, next(iter(metrics)))], 4)
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-metrics", action="store_true")
    parser.add_argument("--no-metrics", action="store_true")
    parser.add_argument("--reuse", action="store_true", help="measure our models of the last run again")
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    names = given.models or shared.names()
    given.out.mkdir(parents=True, exist_ok=True)
    make_peers(given.out, given.peer_python, names)

    def tell(**row: object) -> None:
        print(json.dumps(row), flush=True)
        with (given.out / "table.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    for name in names:
        for backend in ("onnxruntime", "openvino"):
            started = time.perf_counter()
            try:
                kept = given.out / f"{name}.edgeinfer_{backend}.onnx"
                if given.reuse and kept.is_file():
                    model = ei.Model.load(kept)
                else:
                    model = ei.optimize(
                        shared.path(name), target=backend, calibration=shared.calibration(name)
                    )
                    model.save(kept)
                took = round(time.perf_counter() - started, 1)
                cell = measure(
                    name, backend, model.to_bytes(), metric=not given.no_metrics, seconds=given.seconds
                )
                in_int8 = any(entry.name == "QuantizeInt8" for entry in model.history)
                tell(model=name, quantizer="ours", runtime=backend, int8=in_int8, made_in_s=took, **cell)
            except Exception as error:
                tell(model=name, quantizer="ours", runtime=backend, error=f"{type(error).__name__}: {error}")
        for peer, ending, backend in PEERS:
            path = given.out / f"{name}.{peer}.{ending}"
            if not path.exists():
                tell(model=name, quantizer=peer, runtime=backend, error="the peer failed; see peers.json")
                continue
            try:
                cell = measure(name, backend, str(path), metric=given.peer_metrics, seconds=given.seconds)
                tell(model=name, quantizer=peer, runtime=backend, **cell)
            except Exception as error:
                tell(
                    model=name,
                    quantizer=peer,
                    runtime=backend,
                    error=f"{type(error).__name__}: {str(error)[:150]}",
                )


if __name__ == "__main__":
    main()
