"""The sensitivity tables: what each layer costs in accuracy when it alone runs in int8.

    python benchmarks/quantization/sensitivity_tables.py [--backend onnxruntime] [--samples 8] [MODEL ...]

Prints a table for each model (MobileNetV2 and MiniLM unless others are named) and keeps it as CSV in
`benchmarks/quantization/results/`, the most sensitive layer first. The last row, with no node, is the whole
model. Ranges come from all calibration rows; the outputs are compared on the first `--samples` of them.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import shared_models as shared

import edgeinfer as ei
from edgeinfer.quantization.search.sensitivity import Sensitivity, sensitivity
from edgeinfer.transforms import FuseBatchNorm, Simplify

MODELS = ("mobilenet_v2_1.0_224", "minilm_l6_fp16w")
RESULTS = Path(__file__).with_name("results")


def keep(table: Sensitivity, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("node", "operator", "sqnr_db", "macs"))
        for layer in table.layers:
            writer.writerow((layer.node, layer.op_type, f"{layer.sqnr_db:.1f}", layer.macs))
        writer.writerow(("", "all layers", f"{table.sqnr_db:.1f}", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--samples", type=int, default=8)
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in given.models or MODELS:
        model = ei.optimize(shared.path(name), [Simplify(widen_weights=True), FuseBatchNorm()])
        table = sensitivity(model, shared.calibration(name), target=given.backend, samples=given.samples)
        print(table, flush=True)
        keep(table, RESULTS / f"sensitivity_{name}_{given.backend}.csv")


if __name__ == "__main__":
    main()
