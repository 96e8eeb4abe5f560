"""Every model in every precision: build, numerics, latency, beside the peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import PRECISIONS, SHAPES, feeds_of, in_precision, open_model
from results import Results, difference, latency

import edgeinfer as ei
from edgeinfer.display import Table

__all__ = ["measure", "peer", "prepared", "table"]


def measure(
    results: Results, name: str, model: ei.Model, precision: str, options: Mapping[str, Any], cache: Path
):
    made: dict[str, Any] = {}

    def build() -> dict[str, Any]:
        made["model"] = in_precision(name, model, precision)
        started = time.monotonic()
        artifact = ei.compile(made["model"], "tensorrt", options=options, cache_dir=cache)
        made["artifact"] = artifact
        return {"build_s": round(time.monotonic() - started, 2), "engine_mb": artifact.disk_bytes / 1e6}

    def numerics() -> dict[str, Any]:
        feed = feeds_of(name, model, 1, seed=7)[0]
        with ei.load(made["artifact"]) as session:
            found = session.infer(feed)
            report = session.execution()
        rows = {"precisions": report.precisions, "notes": report.notes}
        for label, reference in (("float", model), ("same_graph", made["model"])):
            with ei.load(ei.compile(reference, "onnxruntime")) as session:
                rows[label] = difference(found, session.infer(feed))
        return rows

    def timed(graphs: bool, bound: bool) -> dict[str, Any]:
        feed = feeds_of(name, model, 1)[0]
        with ei.load(made["artifact"], options={"cuda_graphs": graphs}) as session:
            if not bound:
                return latency(lambda: session.infer(feed))
            with session.bind() as binding:
                for key, value in feed.items():
                    binding.inputs[key][...] = value
                return latency(binding.run)

    names = {"model": name, "precision": precision}
    results.step(build, step="build", **names)
    if "artifact" not in made:
        return
    results.step(numerics, step="numerics", **names)
    results.step(lambda: timed(True, False), step="latency", mode="graph", **names)
    results.step(lambda: timed(False, False), step="latency", mode="no graph", **names)
    results.step(lambda: timed(True, True), step="latency", mode="graph, bound", **names)


def prepared(results: Results, folder: Path, names: list[str]) -> dict[str, dict[str, Path]]:
    """The models as the peers run them: constants folded and BatchNorm fused, as for TensorRT."""
    made: dict[str, dict[str, Path]] = {}
    for name in names:
        for precision in ("float32", "float16"):
            path = results.scratch / "prepared" / precision / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            in_precision(name, open_model(folder, name), precision).save(path)
            made.setdefault(name, {})[precision] = path
    return made


def peer(
    results: Results,
    step: str,
    python: str,
    files: Mapping[str, Mapping[str, Path]],
    seconds: float,
    arguments: tuple[str, ...] = (),
) -> None:
    """Run the script of a peer in the interpreter that has it, and take its rows over."""
    script = Path(__file__).with_name(
        {"torch": "onnx_torch.py", "onnxruntime cuda": "onnxruntime_cuda.py"}[step]
    )
    models = {
        name: {"files": {key: str(path) for key, path in paths.items()}, "shapes": SHAPES[name]}
        for name, paths in files.items()
    }
    command = [python, str(script), "--models", json.dumps(models), "--seconds", str(seconds), *arguments]
    # The other interpreter must not see this one's packages and libraries, but needs the driver's.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if "PYTHONHOME" in os.environ:
        own = str(Path(sys.prefix).parent)
        libraries = clean.get("LD_LIBRARY_PATH", "").split(":")
        clean["LD_LIBRARY_PATH"] = ":".join(path for path in libraries if not path.startswith(own))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean, bufsize=1
    )
    timer = threading.Timer(seconds + 30, process.kill)
    timer.start()
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    for line in process.stdout or ():  # rows as they come: what comes after them may fail
        if line.startswith("{"):
            results.add(**json.loads(line))
    timer.cancel()
    reader.join()
    if process.wait():
        results.add(step=step, error="".join(said).strip()[-800:] or f"exit status {process.returncode}")


def table(rows: list[dict[str, Any]]) -> str:
    def number(value: Any, digits: int = 3) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else "-"

    def find(**names: Any) -> dict[str, Any]:
        return next((r for r in rows if all(r.get(k) == v for k, v in names.items())), {})

    cells = []
    for name in dict.fromkeys(row["model"] for row in rows if "model" in row):
        for precision in PRECISIONS:
            key = {"model": name, "precision": precision}
            build, numerics = find(step="build", **key), find(step="numerics", **key)
            if not build:
                continue
            modes = [find(step="latency", mode=m, **key) for m in ("graph", "no graph", "graph, bound")]
            torch = [find(step="torch", mode=m, **key) for m in ("eager", "CUDA graph")]
            ort = [find(step="onnxruntime cuda", mode=m, **key) for m in ("run", "CUDA graph")]
            cells.append(
                (
                    name,
                    precision,
                    build.get("error", "")[:60] or f"{build['build_s']} s, {build['engine_mb']:.2f} MB",
                    number(numerics.get("float", {}).get("cosine"), 5),
                    f"{numerics['float']['max_abs']:.2e}" if "float" in numerics else "-",
                    *(number(row.get("p50_ms")) for row in modes),
                    *(number(row.get("p50_ms")) for row in (*torch, *ort)),
                )
            )
    columns = (
        "model",
        "precision",
        "build",
        "cosine",
        "max abs",
        "graph",
        "no graph",
        "bound",
        "torch eager",
    )
    return str(
        Table(
            title="p50 in ms at batch 1, host to host; cosine and error against ONNX Runtime CPU float32",
            columns=(*columns, "torch graph", "ort cuda", "ort graph"),
            rows=cells,
        )
    )
