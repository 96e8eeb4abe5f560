"""Closeness against speed: ours with layers given back to float one after the other, and the peers.

    python benchmarks/quantization/tradeoff.py OUT [--only MODEL:RUNTIME ...] [--points 6] [--metric]

OUT is the folder of `peers.py` or `peers_table.py` with the peers' models; those that are not there are left
out. Ours starts with `optimize(model, target=..., calibration=...)` and gives layers back to float in the
order of its search: the most noise for the least time first. The most layers in float are half of them. For
each point: SQNR against float on at least 200 evaluation rows, the speed-up over the same runtime's float32
on one thread (every point takes turns with float), and with --metric the task's metric.
Writes `tradeoff.json` and `tradeoff.png` to `benchmarks/quantization/results/`; with --only, the other curves
in `tradeoff.json` are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import shared_models as shared
from peers_table import PEERS, run_in
from run_table import METRIC, speedup, sqnr_db

import edgeinfer as ei
from edgeinfer.quantization.search.layer_gains import LayerGains, costs_of_float
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.quantization.search.sensitivity import LayerSensitivity, Sensitivity, sensitivity
from edgeinfer.transforms import FuseBatchNorm, Simplify

RESULTS = Path(__file__).with_name("results")
CASES = (
    "cifar10_resnet20:onnxruntime",
    "mobilenet_v2_1.0_224:onnxruntime",
    "mobilenet_v2_1.0_224:openvino",
    "cifar10_resnet8_mlperf:onnxruntime",
    "vww_mobilenetv1_025_96:openvino",
    "espcn_x3:onnxruntime",
    "minilm_l6_fp16w:openvino",
)
Point = dict[str, Any]


@attrs.frozen
class Case:
    """One model in one runtime."""

    name: str
    backend: str
    metric: bool
    seconds: float

    def point(self, model: str | bytes, **facts: object) -> Point:
        """Measure one model."""
        original = str(shared.path(self.name))
        run_float, run = (run_in(self.backend, each, self.name, fixed=False) for each in (original, model))
        pairs = [(run_float(feed), run(feed)) for feed in shared.evaluation_feeds(self.name)]
        outputs = range(len(pairs[0][0]))
        closeness = [sqnr_db([a[i] for a, _ in pairs], [b[i] for _, b in pairs]) for i in outputs]
        feed = shared.example(self.name)
        base, fast = (run_in(self.backend, each, self.name, fixed=True) for each in (original, model))
        found: Point = {
            **facts,
            "sqnr_db": round(min(float(np.mean(closeness)), 200.0), 1),
            "speedup": round(speedup(lambda: base(feed), lambda: fast(feed), self.seconds)[0], 2),
        }
        if self.metric:
            metrics = shared.evaluate(self.name, run)
            found["metric"] = round(metrics[METRIC.get(self.name, next(iter(metrics)))], 4)
        print(f"{self.name} in {self.backend}: {found}", flush=True)
        return found

    def ours(self, points: int) -> list[Point]:
        """Measure our model with more and more layers in float."""
        feeds = shared.calibration(self.name)
        base = ei.optimize(shared.path(self.name), [Simplify(widen_weights=True), FuseBatchNorm()])
        options = QuantizeInt8(calibration=feeds, target=self.backend)
        whole = options.apply(base)
        first = self.point(whole.model.to_bytes(), in_float=0)
        table = sensitivity(base, feeds, target=self.backend, samples=4)
        order = _order(table, whole.report.data.get("gains"))
        most = len(order) // 2
        counts = sorted({round(most ** (i / (points - 1))) for i in range(points)}) if most > 1 else []
        found = [first]
        for count in counts:
            candidate = attrs.evolve(options, keep_float=order[:count], spend=0)
            found.append(self.point(candidate.apply(base).model.to_bytes(), in_float=count))
        return found

    def peers(self, folder: Path) -> list[Point]:
        """Measure the peers' models in this runtime."""
        found = []
        for peer, ending, backend in PEERS:
            path = folder / f"{self.name}.{peer}.{ending}"
            if backend == self.backend and path.exists():
                try:
                    found.append(self.point(str(path), quantizer=peer))
                except Exception as error:  # a peer's model that does not run has no point
                    print(f"{path.name}: {type(error).__name__}: {str(error)[:150]}", flush=True)
        return found


def _order(table: Sensitivity, gains: LayerGains | None) -> list[str]:
    """Return the layers by noise per time, most first, as the search orders them."""
    costs = costs_of_float({layer.node: float(layer.macs or 0) for layer in table.layers}, gains)

    def worth(layer: LayerSensitivity) -> float:
        return float(10 ** (-layer.sqnr_db / 10) / max(costs[layer.node], 1e-9))

    return [layer.node for layer in sorted(table.layers, key=worth, reverse=True)]


def draw(curves: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    for axis, (case, curve) in zip(axes.flat, sorted(curves.items()), strict=False):
        ours = curve["ours"]
        axis.plot([p["speedup"] for p in ours], [p["sqnr_db"] for p in ours], "o-", label="edgeinfer")
        for point in ours:
            axis.annotate(str(point["in_float"]), (point["speedup"], point["sqnr_db"]), fontsize=7)
        for point in curve["peers"]:
            axis.plot(point["speedup"], point["sqnr_db"], "s", label=point["quantizer"])
        if curve["peers"]:
            aim = max(p["sqnr_db"] for p in curve["peers"]) + 3
            axis.axhline(aim, linestyle=":", color="grey")
        axis.set(title=case.replace(":", " in "), xlabel="speed-up over float32", ylabel="SQNR dB")
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder with the peers' models")
    parser.add_argument("--only", nargs="*", default=CASES, help="MODEL:RUNTIME")
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--metric", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / "tradeoff.json"
    curves: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for case in given.only:
        name, _, backend = case.partition(":")
        measured = Case(name, backend, given.metric, given.seconds)
        curves[case] = {"ours": measured.ours(given.points), "peers": measured.peers(given.out)}
        kept.write_text(json.dumps(curves, indent=1) + "\n")
        draw(curves, RESULTS / "tradeoff.png")


if __name__ == "__main__":
    main()
