"""How good estimates are, on this machine: fitted to synthetic nets, judged on real models.

    python benchmarks/estimates.py SAMPLES MODELS [--nets 160] [--save FOLDER]

Measures synthetic nets, the real models in MODELS, and pruned variants of these, in float32 and int8 on ONNX
Runtime and OpenVINO, on one thread in processor time, in turns with a probe (`edgeinfer.estimate.samples`).
Measurements are kept in SAMPLES, so that a run that was stopped goes on. Real models are never in the fit.
`--save` writes the calibrations, as those that come with edgeinfer were made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from estimate_nets import Nets

from edgeinfer.devices.profile import Target
from edgeinfer.estimate.calibrate import fit_calibration
from edgeinfer.estimate.calibration import Calibration
from edgeinfer.estimate.fit import fit_prices, priced
from edgeinfer.estimate.samples import PRECISIONS, Sample
from edgeinfer.estimate.scaled import Baseline, Scaled

TARGETS = ("onnxruntime", "openvino")


def summary(what: str, ratios: Sequence[float]) -> str:
    errors = np.abs(np.asarray(ratios) - 1.0)
    if not len(errors):
        return f"{what:44s} none"
    return (
        f"{what:44s} {len(errors):4d}  median {np.median(errors):6.1%}  90th percentile "
        f"{np.percentile(errors, 90):6.1%}  within 25 %: {np.mean(errors <= 0.25):4.0%}"
    )


def probe_ms(samples: Sequence[Sample], target: str) -> float:
    return float(np.percentile([s.probe_ms for s in samples if s.target == target], 10))


def of(samples: Sequence[Sample], target: str, precision: str) -> list[Sample]:
    return [s for s in samples if (s.target, s.precision) == (target, precision) and not s.work.recurrent]


def latency_table(
    title: str, synthetic: Sequence[Sample], real: Sequence[Sample], calibrations: dict[str, Calibration]
) -> None:
    print(f"\nlatency of real models {title}, calibrated: estimate / measured (ms)")
    everything: list[float] = []
    for target in TARGETS:
        unit = probe_ms(synthetic, target)
        for precision in PRECISIONS:
            ratios = []
            for s in of(real, target, precision):
                found = calibrations[target].latency_us(s.work) / 1e3
                ratios.append(found / (s.ratio * unit))
                print(f"  {s.net:26s} {target:12s} {precision:8s} {found:8.3f} / {s.ratio * unit:8.3f}"
                      f" = {ratios[-1]:5.2f}")  # fmt: skip
            print(summary(f"{target} {precision}", ratios))
            everything += ratios
    print(summary("all, calibrated", everything))
    for name, feature in RIVALS.items():
        ratios = []
        for target in TARGETS:
            for precision in PRECISIONS:
                own = of(synthetic, target, precision)
                if own:
                    prices = fit_prices([feature(s) for s in own], [s.ratio for s in own])
                    ratios += [priced(feature(s), prices) / s.ratio for s in of(real, target, precision)]
        print(summary(f"all, {name}", ratios))
    recurrent = [s for s in real if s.work.recurrent]
    off = [
        calibrations[s.target].latency_us(s.work) / 1e3 / (s.ratio * probe_ms(synthetic, s.target))
        for s in recurrent
    ]
    print(f"recurrent nets, which are not estimated, would be: {', '.join(f'{r:.2f}' for r in off)}")


def fixed(real: Sequence[Sample], pruned: Sequence[Sample]) -> list[Sample]:
    """Return the real models with fixed shapes: unpruned ones of the variants, and those that come so."""
    found = [s for s in pruned if s.net.endswith("@1")]
    names = {s.net.removesuffix("@1") for s in found}
    return found + [s for s in real if not s.work.open_shapes and s.net not in names]


RIVALS: dict[str, Callable[[Sample], dict[str, float]]] = {
    "products alone": lambda s: {"macs": float(s.work.macs)},
    "products, bytes and kernels": lambda s: {
        "macs": float(s.work.macs),
        "moved": float(sum(k.read_bytes + k.written_bytes + k.weight_bytes for k in s.work.kernels)),
        "kernels": float(len(s.work.kernels)),
    },
}


def scaled_table(pruned: Sequence[Sample], calibrations: dict[str, Calibration]) -> None:
    print("\nlatency of pruned variants, scaled from one measured baseline: estimate / measured")
    for label, same in (("the same precision", True), ("int8 from a float32 baseline", False)):
        ratios, inside = [], []
        for target in TARGETS:
            for precision in PRECISIONS if same else ("int8",):
                before = len(ratios)
                bases = {s.net: s for s in of(pruned, target, precision if same else "float32")}
                for s in of(pruned, target, precision):
                    base = bases.get(f"{s.net.split('@')[0]}@1")
                    if base is None or (same and base is s):
                        continue
                    baseline = Baseline(work=base.work, latency_p50_ms=base.ratio)
                    scaled = Scaled([baseline], target=target, calibration=calibrations[target])
                    figure = scaled.estimate(s.work)["latency_p50_ms"]
                    ratios.append(figure.value / s.ratio)
                    inside.append(figure.low <= s.ratio <= figure.high)
                print(summary(f"  {target} {precision}", ratios[before:]))
        print(summary(label, ratios), f" in the band: {np.mean(inside):4.0%}" if inside else "")


def memory_table(real: Sequence[Sample], calibrations: dict[str, Calibration]) -> None:
    print("\nmemory that loading and running real models adds: estimate / measured")
    everything = []
    for target in TARGETS:
        for precision in PRECISIONS:
            prices = calibrations[target].memory.get(precision)
            own = [s for s in real if (s.target, s.precision) == (target, precision) and s.added_bytes]
            ratios = [prices.added_bytes(s.work) / s.added_bytes for s in own] if prices else []
            print(summary(f"{target} {precision}: {prices.describe() if prices else ''}", ratios))
            everything += ratios
    print(summary("all", everything))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--nets", type=int, default=160)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    nets = Nets(arguments.samples, arguments.models, tuple(Target.parse(name) for name in TARGETS))
    # The real ones first: a run that is stopped early then lacks some synthetic nets and can still be judged.
    real, pruned, synthetic = nets.real(), nets.pruned(), nets.synthetic(arguments.nets)
    calibrations = {name: fit_calibration(synthetic, name) for name in TARGETS}
    for name, calibration in calibrations.items():
        bands = ", ".join(f"{p} {b.low:.2f} … {b.high:.2f}" for p, b in calibration.bands.items())
        print(f"{name}: {calibration.nets} nets on {calibration.machine}; held-out synthetic nets {bands}")
        if arguments.save:
            calibration.save(arguments.save / f"{name}.json")
    latency_table("as exported (most leave their batch open)", synthetic, real, calibrations)
    latency_table("with fixed shapes", synthetic, fixed(real, pruned), calibrations)
    scaled_table(pruned, calibrations)
    memory_table(real, calibrations)


if __name__ == "__main__":
    main()
