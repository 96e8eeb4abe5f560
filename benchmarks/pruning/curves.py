"""Accuracy against multiply-accumulates and against measured latency, with no retraining.

    python benchmarks/pruning/curves.py --only cifar10_resnet20,squeezenet1_1 --out curves

Each point is one run of PruneChannels (PruneHeads for the text encoder) on calibration rows, scored on the
evaluation rows, and timed on both runtimes with the runs of the float and the pruned model interleaved.
`magnitude` is the same removal ranked by weight norms, with nothing refitted. Writes `curves.json` and
`curves.png`, and adds to the points that are there already.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType

import numpy as np

from edgeinfer import Target
from edgeinfer.executor import probe
from edgeinfer.model import Model
from edgeinfer.pruning.latency import fastest_ms
from edgeinfer.transforms import PruneChannels, PruneHeads, PruneNM

HERE = Path(__file__).resolve()
DATA = HERE.parents[3] / "shared" / "data"
METRIC = {"nanodet_m_320": "mAP", "minilm_l6_fp16w": "spearman"}
KEEP = (0.9, 0.8, 0.7)


def tasks(data: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_baseline", data / "eval_baseline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calibration(eb: ModuleType, name: str, samples: int) -> list[dict[str, np.ndarray]]:
    """Calibration rows, as the evaluation prepares them."""
    if name == "minilm_l6_fp16w":
        ids = np.load(Path(eb.D) / "stsb_en_tokens.npz")["dev_ids_a"][:samples]
        lengths = (ids > 0).sum(1)
        order = np.argsort(lengths)
        parts = [ids[order[k : k + 8]][:, : lengths[order[k : k + 8]].max()] for k in range(0, len(order), 8)]
        return [{"input_ids": p.astype(np.int64), "attention_mask": (p > 0).astype(np.int64)} for p in parts]
    if name == "nanodet_m_320":
        feeds: list[dict[str, np.ndarray]] = []

        def record(feed: dict[str, np.ndarray], names: tuple[str, ...]) -> list[np.ndarray]:
            feeds.append(feed)
            return [
                np.zeros((1, (320 // int(n[4:])) ** 2, 80 if n[0] == "c" else 32), np.float32) for n in names
            ]

        for entry in eb.coco("train2017")[:samples]:
            eb.nanodet(record, eb.cimg(entry))
        return feeds
    images, labels = eb.cifar() if name.startswith("cifar") else eb.imagenet(224)
    rows = images[eb.pick(len(labels), "calib")[:samples]].astype(np.float32)
    rows = rows / 127.5 - 1 if name.startswith("mobilenet") else (rows - eb.IM_M) / eb.IM_S
    rows = eb.nchw(rows)
    step = 50 if name.startswith("cifar") else 10
    return [{"input": rows[k : k + step]} for k in range(0, len(rows), step)]


def score(eb: ModuleType, name: str, model: Model) -> float:
    outputs = [value.name for value in model.ir.graph.outputs]
    with probe(model, outputs) as session:

        def run(feed: dict[str, np.ndarray], names: tuple[str, ...] | None = None) -> list[np.ndarray]:
            got = session.infer({key: np.ascontiguousarray(value) for key, value in feed.items()})
            return [got[key] for key in names or outputs]

        return float(eb.TASKS[name][0](run, "eval")[METRIC.get(name, "top1")])


def methods(name: str, feeds: list[dict[str, np.ndarray]], keep: float) -> dict[str, object]:
    if name == "minilm_l6_fp16w":
        return {"edgeinfer": PruneHeads(keep, calibration=feeds), "magnitude": PruneHeads(keep)}
    return {
        "edgeinfer": PruneChannels(keep, calibration=feeds),
        "magnitude": PruneChannels(keep, criterion="magnitude", measure=0),
    }


def point(
    eb: ModuleType, name: str, label: str, model: Model, pruned: Model, report: object
) -> dict[str, object]:
    data = report.data
    cost = next(
        (key[:-7] for key in data if key.endswith("_before") and not key.startswith("measured")), None
    )
    entry = {
        "model": name,
        "method": label,
        "kept": data[f"{cost}_after"] / data[f"{cost}_before"] if cost else 1.0,
        "score": score(eb, name, pruned),
        "seconds": report.seconds,
        "bytes": pruned.nbytes / model.nbytes,
    }
    feed = eb.TASKS[name][1]
    for backend in ("onnxruntime", "openvino"):
        before, after = fastest_ms((model, pruned), feed, Target.parse(backend))
        entry[backend] = after / before
        entry[f"{backend}_ms"] = [before, after]
    return entry


def picture(points: list[dict[str, object]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(p["model"] for p in points))
    figure, grid = plt.subplots(len(names), 3, figsize=(13, 3 * len(names)), squeeze=False)
    columns = (
        ("kept", "cost kept (MACs; heads)"),
        ("onnxruntime", "latency, ONNX Runtime"),
        ("openvino", "latency, OpenVINO"),
    )
    for axes, name in zip(grid, names, strict=True):
        for axis, (column, title) in zip(axes, columns, strict=True):
            for label, mark in (("edgeinfer", "o-"), ("magnitude", "s--")):
                chosen = [p for p in points if p["model"] == name and p["method"] in (label, "float")]
                chosen.sort(key=lambda p: -p["kept"])
                axis.plot([p[column] for p in chosen], [p["score"] for p in chosen], mark, label=label)
            axis.set_title(f"{name}: {METRIC.get(name, 'top1')}", fontsize=9)
            axis.set_xlabel(f"{title}, part of float", fontsize=8)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument(
        "--only", default="cifar10_resnet20,squeezenet1_1,mobilenet_v2_1.0_224,nanodet_m_320,minilm_l6_fp16w"
    )
    parser.add_argument("--keep", default=",".join(map(str, KEEP)))
    parser.add_argument("--samples", type=int, default=256, help="at most; the ImageNet rows give 50")
    parser.add_argument("--nm", action="store_true", help="2:4 as well")
    options = parser.parse_args()
    eb = tasks(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "curves.json"
    points = json.loads(store.read_text()) if store.exists() else []

    def add(entry: dict[str, object]) -> None:
        same = ("model", "method", "asked")
        points[:] = [p for p in points if any(p.get(key) != entry.get(key) for key in same)] + [entry]
        store.write_text(json.dumps(points, indent=1))
        print(json.dumps(entry), flush=True)

    for name in options.only.split(","):
        model = Model.load(options.data / "models" / f"{name}.onnx")
        feeds = calibration(eb, name, options.samples)
        if not any(p["model"] == name and p["method"] == "float" for p in points):
            ones = {"kept": 1.0, "onnxruntime": 1.0, "openvino": 1.0, "asked": 1.0}
            add({"model": name, "method": "float", "score": score(eb, name, model), **ones})
        for keep in map(float, options.keep.split(",")):
            for label, transform in methods(name, feeds, keep).items():
                started = time.perf_counter()
                pruned, report = transform.apply(model)
                entry = point(eb, name, label, model, pruned, report)
                add({**entry, "asked": keep, "total_seconds": time.perf_counter() - started})
        if options.nm:
            pruned, report = PruneNM(calibration=feeds).apply(model)
            add({**point(eb, name, "2:4", model, pruned, report), "asked": "2:4"})
    picture(points, options.out / "curves.png")


if __name__ == "__main__":
    main()
