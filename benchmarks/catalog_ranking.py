"""The catalog's estimates against published latencies: how well it ranks devices.

    python benchmarks/catalog_ranking.py MEASURED.csv MODELS

MEASURED.csv has the columns model, device, unit, precision, batch, latency_ms; MODELS is a folder with
`mobilenet_v2_1.0_224.onnx`, `squeezenet1_1.onnx` and `nanodet_m_320.onnx`. Rows of the nets and devices that
are known are taken. The floors of NVIDIA GPUs and of the NPU were derived from the ResNet-50 rows, so the
figures are also given without these.
"""

from __future__ import annotations

import argparse
import collections
import csv
from pathlib import Path

import numpy as np
from published_nets import published

from edgeinfer.devices.catalog import profiles
from edgeinfer.devices.device_profile import DeviceProfile
from edgeinfer.estimate.roofline import roofline_ms
from edgeinfer.estimate.workload import Workload, workload

NETS = {
    "resnet50": ("resnet-50", "resnet50"),
    "mobilenet_v2": ("mobilenet-v2", "mobilenet_v2", "mobilenetv2"),
    "squeezenet": ("squeezenet1.1",),
    "nanodet": ("nanodet_m",),
    "yolo11n": ("yolo11n",),
    "yolo11s": ("yolo11s",),
    "yolo11m": ("yolo11m",),
    "bert-base-128": ("bert-base",),
}
FILES = {
    "mobilenet_v2": "mobilenet_v2_1.0_224.onnx",
    "squeezenet": "squeezenet1_1.onnx",
    "nanodet": "nanodet_m_320.onnx",
}
UNITS = {"GPU": "gpu", "iGPU": "gpu", "dGPU": "gpu", "GPU (Vulkan)": "gpu", "NPU": "npu", "CPU": "cpu"}
# Devices of the file, where the catalog calls them otherwise.
DEVICES = {
    "jetson-agx-orin": "jetson-agx-orin-64gb",
    "jetson-orin-nano": "jetson-orin-nano-8gb",
    "intel-core-i5-13600k": "intel-core-13gen",
    "intel-core-i7-12700h": "intel-core-12gen",
    "intel-core-ultra-7-165h": "intel-core-ultra-1",
    "intel-arc-a770m": "intel-arc-a770",
}


def net_of(text: str) -> str | None:
    lower = text.lower()
    return next((net for net, words in NETS.items() if any(word in lower for word in words)), None)


def precision_of(row: dict[str, str], profile: DeviceProfile) -> str:
    if row["precision"].startswith("int8"):
        return "int8"
    if row["precision"].startswith("fp16"):
        return "float16"
    # ncnn computes in float16 where the processor or GPU has it.
    isa = profile.main.facts.get("isa")
    half = profile.unit == "gpu" or (isa is not None and "fp16" in str(isa.value))
    return "float16" if "ncnn default" in row["precision"] and half else "float32"


def one_thread(profile: DeviceProfile, row: dict[str, str], latency_ms: float) -> float:
    """The catalog's peaks are those of all cores."""
    cores = profile.main.number("cores")
    return latency_ms * cores if row["threads"] == "1" and profile.unit == "cpu" and cores else latency_ms


def ranks(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values, kind="stable")
    found = np.empty(len(values))
    found[order] = np.arange(len(values))
    for value in np.unique(values):
        found[values == value] = found[values == value].mean()
    return found


def spearman(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(ranks(np.array(a)), ranks(np.array(b)))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("models", type=Path)
    arguments = parser.parse_args()
    nets: dict[str, Workload] = published()
    nets |= {name: workload(arguments.models / file) for name, file in FILES.items()}
    catalog = profiles()
    found: list[tuple[str, str, str, float, float]] = []
    unknown: collections.Counter[str] = collections.Counter()
    with arguments.measured.open(newline="") as file:
        for row in csv.DictReader(file):
            net, unit = net_of(row["model"]), UNITS.get(row["unit"])
            name = DEVICES.get(row["device"], row["device"])
            if net is None or unit is None or row["batch"] != "1" or not row["latency_ms"]:
                unknown["another net, unit or batch"] += 1
                continue
            if f"{name}:{unit}" not in catalog and not (unit == "cpu" and name in catalog):
                unknown[f"no profile {name}:{unit}"] += 1
                continue
            profile = catalog[name].on(unit) if unit in catalog[name].units else catalog[name]
            if "@" in name or profile.unit != unit:
                unknown[f"no unit {name}:{unit}"] += 1
                continue
            precision = precision_of(row, profile)
            estimate = roofline_ms(nets[net].assume(precision), profile)
            if estimate is None:
                unknown[f"no peak of {name}:{unit} in {precision}"] += 1
                continue
            latency = one_thread(profile, row, estimate.latency_ms)
            found.append((net, f"{name}:{unit}", precision, latency, float(row["latency_ms"])))
    print(f"{'net':15s} {'device':32s} {'precision':9s} {'estimate':>10s} {'measured':>10s} {'ratio':>6s}")
    for net, device, precision, estimate, measured in sorted(found):
        line = f"{net:15s} {device:32s} {precision:9s} {estimate:10.3f} {measured:10.3f}"
        print(f"{line} {estimate / measured:6.2f}")
    report("all rows", found)
    report("without ResNet-50 on NVIDIA GPUs and the NPU",
           [row for row in found if row[0] != "resnet50" or row[1].endswith(":cpu")])  # fmt: skip
    for net in NETS:
        report(f"devices for {net}", [row for row in found if row[0] == net])
    for reason, count in unknown.most_common():
        print(f"left out: {count} rows: {reason}")


def report(what: str, rows: list[tuple[str, str, str, float, float]]) -> None:
    if len(rows) < 4:
        return
    estimates, measured = [row[3] for row in rows], [row[4] for row in rows]
    ratios = np.array(estimates) / np.array(measured)
    factors = np.maximum(ratios, 1 / ratios)
    print(
        f"{what}: {len(rows)} rows, rank correlation {spearman(estimates, measured):.3f}, "
        f"median factor {np.median(factors):.2f}, 80 % within {np.percentile(factors, 80):.2f}, "
        f"median ratio {np.median(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
