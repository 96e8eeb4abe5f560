"""Tuning real models: half the float latency with at most one point lost, and a budget that cannot be met.

    python benchmarks/tuning.py DATA MODEL BACKEND [--minutes 6] [--folder OUT] [--part 0.5] [--stride 1]
        [--on ssh://user@host --python PYTHON] [--json FILE] [--free-threads] [--batches 1 4] [--fix-shapes]

DATA is as for `real_models.py`. The float latency is measured first, on one thread, in turns with int8; the
budget is a part of it, and one point of the task's first metric. Everything runs on one thread, so that a
shared machine can be measured; with `--free-threads` tuning chooses their number, and the limit is still a
part of what float takes on one thread. `--batches` lets it choose the batch. `--stride 2` evaluates on
every other sample while tuning; the final figures are from all of them. A run that was interrupted goes on
from its journal in OUT. Prints one JSON object; with `--json` it is also appended to FILE, as one line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_models import Run, ours
from shared_data import baselines

import edgeinfer as ei
from edgeinfer.backends.registry import get_backend

MODELS = {
    "mobilenet": "mobilenet_v2_1.0_224",
    "nanodet": "nanodet_m_320",
    "minilm": "minilm_l6_fp16w",
    "keywords": "kws_dscnn",
}
POINT = 0.01  # of accuracy, mAP or correlation
LENGTH = 32  # tokens of a sentence


class _EnoughError(Exception):
    """Ends a task when there are samples enough."""


def calibration(module: Any, name: str, most: int) -> list[dict[str, np.ndarray]]:
    """What the task's calibration samples look like to the model, one row a feed."""
    task, _ = module.TASKS[name]
    rows: list[dict[str, np.ndarray]] = []

    def record(feed: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Any:
        for index in range(len(next(iter(feed.values())))):
            rows.append({key: array[index : index + 1] for key, array in feed.items()})
        if len(rows) >= most and name != MODELS["minilm"]:
            raise _EnoughError
        if name == MODELS["minilm"]:
            if len(rows) >= 1500:
                raise _EnoughError
            return [np.ones((len(next(iter(feed.values()))), 384), np.float32)]
        return reference(feed, outputs)

    reference = None
    if name != MODELS["minilm"]:
        model = ei.Model.load(module.ROOT + f"/models/{name}.onnx")
        session = ei.load(ei.compile(model, "onnxruntime"))
        reference = ours(session)
    with contextlib.suppress(_EnoughError):
        task(record, "calib")
    if name == MODELS["minilm"]:
        step = max(1, len(rows) // most)
        rows = [{key: _padded(array) for key, array in row.items()} for row in rows[::step]]
    return rows[:most]


def _padded(array: np.ndarray) -> np.ndarray:
    return np.pad(array[:, :LENGTH], ((0, 0), (0, max(0, LENGTH - array.shape[1]))))


def metric_of(module: Any, name: str, subset: str = "eval") -> Callable[[ei.Model], float]:
    task, _ = module.TASKS[name]

    def evaluate(model: ei.Model) -> float:
        with ei.load(ei.compile(model)) as session:
            return float(next(iter(task(one_by_one(ours(session), session), subset).values())))

    return evaluate


def one_by_one(run: Run, session: ei.Session) -> Run:
    """Give rows one at a time to a model whose batch was fixed."""

    def rows(feed: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        count = len(next(iter(feed.values())))
        found = [run({k: array[i : i + 1] for k, array in feed.items()}, outputs) for i in range(count)]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    fixed = all(spec.shape is not None and spec.shape[0] == 1 for spec in session.signature.inputs)
    return rows if fixed else run


def float_ms(
    model: ei.Model, target: str, feeds: Sequence[Mapping[str, np.ndarray]], options: Mapping[str, Any]
) -> float:
    """The p50 of the simplified float model, as tuning measures it: in turns with int8."""
    nothing = ei.Budget(latency_p50_ms=1e6)
    found = ei.tune(model, nothing, target=target, calibration=feeds, minutes=0.01, options=options)
    return float(found.baseline.latency_p50_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("backend")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--part", type=float, default=0.5)
    parser.add_argument("--disk", help="also limit the size on disk, such as '60 kB'")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--free-threads", action="store_true")
    parser.add_argument("--batches", type=int, nargs="*", default=())
    parser.add_argument("--fix-shapes", action="store_true", help="to those of one row")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--on", help="ssh://user@host of a device that candidates are timed on")
    parser.add_argument("--python", default="python3", help="of the device")
    parser.add_argument("--folder", type=Path, default=Path("tuning"))
    parser.add_argument("--json", type=Path, help="a file that the result is appended to, as one line")
    arguments = parser.parse_args()
    name, target = MODELS[arguments.model], arguments.backend
    module = baselines(arguments.data)
    pick = module.pick
    module.pick = lambda n, subset: pick(n, subset)[:: arguments.stride if subset == "eval" else 1]
    model = ei.Model.load(arguments.data / "models" / f"{name}.onnx")
    feeds = calibration(module, name, arguments.samples)
    options = get_backend(target.partition(":")[0]).capabilities().threads(1) or {}
    how = (
        "-free" * arguments.free_threads
        + "-fixed" * arguments.fix_shapes
        + "".join(f"-{size}" for size in arguments.batches)
    )
    run = arguments.folder / f"{arguments.model}-{target}-{arguments.part:g}{how}"
    run.mkdir(parents=True, exist_ok=True)
    noted = run / "float_ms.json"
    if not noted.exists():
        noted.write_text(json.dumps(float_ms(model, target, feeds, options)))
    base_ms = json.loads(noted.read_text())
    budget = ei.Budget(latency_p50_ms=arguments.part * base_ms, disk_bytes=arguments.disk, max_drop=POINT)
    device = ei.devices.connect(arguments.on, python=arguments.python) if arguments.on else None
    started = time.monotonic()
    result = ei.tune(
        model,
        budget,
        target=target,
        calibration=feeds,
        evaluate=metric_of(module, name),
        minutes=arguments.minutes,
        journal=run / "journal.jsonl",
        options=None if arguments.free_threads else options,
        batches=arguments.batches,
        fix_shapes=arguments.fix_shapes,
        on=device,
        progress=True,
    )
    result.save_html(run / "report.html")
    (run / "table.txt").write_text(str(result))
    found = {
        "model": arguments.model,
        "backend": target,
        "float_ms": base_ms,
        "limit_ms": budget.latency_p50_ms,
        "on": arguments.on,
        "free_threads": arguments.free_threads,
        "met": result.met,
        "clock": result.clock,
        "tuning_s": result.seconds,
        "this_call_s": time.monotonic() - started,
        "candidates": result.candidates,
        "dropped": result.dropped,
        "made": len(result.trials),
        "float_metric_while_tuning": result.baseline.metric,
        "float_p50_ms": result.baseline.latency_p50_ms,
        "float_p99_ms": result.baseline.latency_p99_ms,
        "fastest_within_a_point": _fastest(result),
        "notes": list(result.notes),
    }
    if result.met:
        found |= _best(result, run, model, module, name, pick)
    else:
        found["advice"] = [each.describe() for each in result.advice]
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        with arguments.json.open("a") as file:
            file.write(json.dumps(found) + "\n")


def _fastest(result: Any) -> dict[str, Any] | None:
    """The fastest candidate that loses at most one point, whether or not the limit on latency is met."""
    close = [t for t in result.trials if t.drop is not None and t.drop <= POINT and t.latency_p50_ms]
    if not close:
        return None
    trial = min(close, key=lambda trial: trial.latency_p50_ms)
    return {
        "candidate": trial.candidate.describe(),
        "p50_ms": trial.latency_p50_ms,
        "p99_ms": trial.latency_p99_ms,
        "metric": trial.metric,
        "speedup": result.baseline.latency_p50_ms / trial.latency_p50_ms,
    }


def _best(result: Any, run: Path, model: ei.Model, module: Any, name: str, pick: Any) -> dict[str, Any]:
    best = result.best
    best.recipe.save(run / "best.recipe")
    replayed = ei.Recipe.load(run / "best.recipe").apply(model)
    module.pick = pick
    full = metric_of(module, name)
    return {
        "best": best.candidate.describe(),
        "p50_ms": best.latency_p50_ms,
        "p99_ms": best.latency_p99_ms,
        "rows_per_s": best.throughput,
        "all_batches": [
            (trial.candidate.describe(), trial.latency_p50_ms, trial.throughput)
            for trial in result.trials
            if trial.candidate.batch is not None and trial.latency_p50_ms
        ],
        "speedup": result.baseline.latency_p50_ms / best.latency_p50_ms,
        "metric_while_tuning": best.metric,
        "replayed_bit_for_bit": replayed.digest == best.model.digest,
        "float_metric_all": full(result.baseline.model),
        "metric_all": full(best.model),
        "disk_bytes": [result.baseline.disk_bytes, best.disk_bytes],
        "peak_bytes": [result.baseline.peak_bytes, best.peak_bytes],
    }


if __name__ == "__main__":
    main()
