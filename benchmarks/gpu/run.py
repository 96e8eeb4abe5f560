"""The TensorRT backend on a real GPU, in one command and under nine minutes.

    python benchmarks/gpu/run.py --models DIR --out DIR [--torch-python python3] [--ort-python python3]
    python benchmarks/gpu/run.py --models DIR --out DIR --part host  # the copies on the host alone

Checks of the running path; then for every model and precision: build, numerics against ONNX Runtime on the
CPU, latency with CUDA graphs on and off and bound, beside ONNX Runtime CUDA (where installed) and PyTorch.
float32 is without TF32 on all sides. Every step stands alone: what fails is printed with its reason, and the
next one runs. Results are appended to `results.jsonl` at once; `table.txt` is written at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import host_copies
import numpy as np
import onnx

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.cuda import Cuda, find_gpus
from edgeinfer.backends.tensorrt_.flavours import find_flavours
from edgeinfer.errors import ArtifactMismatchError, InputError
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.transforms import FixShapes, FuseBatchNorm, Simplify, ToFloat16

HEAD = '<ir_version: 8, opset_import: ["" : 15]>\n'
# The order is that of importance: what time does not suffice for comes last.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mobilenet_v2_1.0_224": {"input": (1, 3, 224, 224)},
    "squeezenet1_1": {"input": (1, 3, 224, 224)},
    "cifar10_resnet20": {"input": (1, 3, 32, 32)},
    "espcn_x3": {"input": (1, 1, 85, 85)},
    "kws_dscnn": {"input": (1, 1, 49, 10)},
    "nanodet_m_320": {"input": (1, 3, 320, 320)},
    "minilm_l6_fp16w": {"input_ids": (1, 32), "attention_mask": (1, 32)},
    "cifar10_resnet8_mlperf": {"input": (1, 3, 32, 32)},
    "vww_mobilenetv1_025_96": {"input": (1, 3, 96, 96)},
    "mnist_cntk": {"Input3": (1, 1, 28, 28)},
    "silero_vad_16k": {"input": (1, 576), "state": (2, 1, 128)},
}
# Raw pixels; the others are normalized.
SCALES = {"nanodet_m_320": 255.0, "cifar10_resnet8_mlperf": 255.0, "mnist_cntk": 255.0}
PRECISIONS = ("float32", "float16", "int8")
# A large input and a small output; both large.
HOST_MODELS = ("mobilenet_v2_1.0_224", "espcn_x3")


class Results:
    def __init__(self, out: Path, minutes: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="edgeinfer-gpu-"))  # `out` holds results alone
        self.out, self.end = out, time.monotonic() + 60 * minutes
        self.rows: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        return self.end - time.monotonic()

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        line = json.dumps(row, default=str)
        print(line, flush=True)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    def step(self, run: Callable[[], Mapping[str, Any] | None], **names: Any) -> None:
        if self.left_s < 0:
            self.add(**names, error="out of time")
            return
        started = time.monotonic()
        try:
            found = run() or {}
            self.add(**names, **found, seconds=round(time.monotonic() - started, 2))
        except BaseException as error:
            traceback.print_exc()
            self.add(**names, error=f"{type(error).__name__}: {error}"[:1500])
            if isinstance(error, KeyboardInterrupt):
                raise


def feeds_of(name: str, model: ei.Model, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def make(spec: Any) -> np.ndarray:
        shape = SHAPES[name][spec.name]
        if spec.dtype.kind == "i":
            mask = spec.name.endswith("mask")
            return np.ones(shape, spec.dtype) if mask else rng.integers(1000, 20000, shape).astype(spec.dtype)
        if name in SCALES:
            return (rng.random(shape) * SCALES[name]).astype(spec.dtype)
        return (rng.standard_normal(shape) * 0.5).astype(spec.dtype)

    return [{spec.name: make(spec) for spec in model.signature.inputs} for _ in range(count)]


def in_precision(name: str, model: ei.Model, precision: str) -> ei.Model:
    steps: list[Any] = [FixShapes(SHAPES[name]), Simplify(), FuseBatchNorm()]
    if precision == "float16":
        steps.append(ToFloat16())
    if precision == "int8":
        steps.append(QuantizeStatic(calibration=feeds_of(name, model, 8, seed=1), target="tensorrt"))
    return ei.optimize(model, steps)


def latency(run: Callable[[], object], seconds: float = 1.0) -> dict[str, float]:
    for _ in range(20):
        run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 50:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99)), "runs": len(times)}


def difference(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    pairs = [
        (found[key].astype(np.float64).ravel(), wanted[key].astype(np.float64).ravel()) for key in wanted
    ]
    a, b = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
    cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    return {
        "max_abs": float(np.abs(a - b).max()),
        "rel_l2": float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)),
        "cosine": cosine,
    }


def options_for_flavour() -> dict[str, Any]:
    # TensorRT 8 would load cuBLAS and cuDNN, which a machine may lack; its own kernels do without them.
    flavour = find_flavours()[0]
    return (
        {} if flavour.strongly_typed else {"tactic_sources": ("edge_mask_convolutions", "jit_convolutions")}
    )


def text_model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def check_running(results: Results, options: Mapping[str, Any]) -> None:
    relu = text_model("g (float[N,4] x) => (float[N,4] y) { s = Mul(x, x)\n y = Sub(s, x) }")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)

    def dynamic() -> dict[str, Any]:
        artifact = ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (1, 2, 8)}})
        with ei.load(artifact) as session:
            for count in (1, 2, 2, 2, 8, 3):
                given = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
                np.testing.assert_allclose(session.infer({"x": given})["y"], given * given - given, atol=1e-6)
            try:
                session.infer({"x": np.zeros((9, 4), np.float32)})
            except InputError as error:
                return {"refused": str(error).splitlines()[0]}
        raise AssertionError("a shape outside of the profile was accepted")

    def ownership_and_graphs() -> dict[str, Any]:
        with ei.load(ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})) as session:
            first = session.infer({"x": x})["y"]
            kept = first.copy()
            for scale in range(2, 6):
                got = session.infer({"x": scale * x})["y"]
                np.testing.assert_allclose(got, (scale * x) ** 2 - scale * x, atol=1e-5)
            np.testing.assert_array_equal(first, kept)
            return {"notes": session.execution().notes, "memory": session._runner.device_memory_bytes}

    def threads() -> dict[str, Any]:
        wrong: list[int] = []
        with ei.load(
            ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}}),
            options={"max_in_flight": 4},
        ) as session:

            def work(scale: int) -> None:
                for _ in range(200):
                    got = session.infer({"x": scale * x})["y"]
                    if not np.allclose(got, (scale * x) ** 2 - scale * x, atol=1e-4):
                        wrong.append(scale)

            pool = [threading.Thread(target=work, args=(scale,)) for scale in range(1, 9)]
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
            streamed = list(session.stream([{"x": k * x} for k in range(1, 50)], in_flight=4))
        assert not wrong, wrong
        for k, outputs in enumerate(streamed, 1):
            np.testing.assert_allclose(outputs["y"], (k * x) ** 2 - k * x, rtol=1e-5, atol=1e-4)
        return {"requests": 1600 + len(streamed)}

    def device_arrays() -> dict[str, Any]:
        cuda = Cuda.open(0)  # nothing else changes the device in this process
        device, host = cuda.call("cudaMalloc", x.nbytes), np.ascontiguousarray(3 * x)
        kind = cuda._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.call("cudaMemcpy", device, host.ctypes.data, host.nbytes, kind)

        class OnDevice:
            __cuda_array_interface__ = {  # noqa: RUF012
                "data": (int(device), False),
                "shape": x.shape,
                "typestr": "<f4",
                "version": 3,
                "stream": 1,
            }

        with ei.load(ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})) as session:
            for _ in range(3):
                got = session.infer({"x": OnDevice()})["y"]
                np.testing.assert_allclose(got, (3 * x) ** 2 - 3 * x, atol=1e-5)
                np.testing.assert_allclose(session.infer({"x": x})["y"], x * x - x, atol=1e-6)
        cuda.call("cudaFree", device)
        return {}

    def bound() -> dict[str, Any]:
        artifact = ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})
        with ei.load(artifact) as session, session.bind({"x": (2, 4)}) as binding:
            for scale in range(1, 6):
                binding.inputs["x"][...] = scale * x
                binding.run()
                np.testing.assert_allclose(binding.outputs["y"], (scale * x) ** 2 - scale * x, atol=1e-5)
            return latency(binding.run, 0.5)

    def data_dependent() -> dict[str, Any]:
        model = text_model("g (float[6] x) => (int64[1,K] y) { y = NonZero(x) }")
        with ei.load(ei.compile(model, "tensorrt", options=options)) as session:
            for values in ([0, 1, 0, 2, 0, 3], [0] * 6, [1] * 6):
                got = session.infer({"x": np.array(values, np.float32)})["y"]
                np.testing.assert_array_equal(got, np.array(np.nonzero(values)))
        return {}

    def preflight() -> dict[str, Any]:
        import attrs

        artifact = ei.compile(relu, "tensorrt", options={**options, "dims": {"N": (2, 2, 2)}})
        requires = dict(artifact.manifest.requires) | {"compute_capability": ("3.0",)}
        try:
            ei.load(attrs.evolve(artifact, manifest=attrs.evolve(artifact.manifest, requires=requires)))
        except ArtifactMismatchError as error:
            return {"refused": str(error), "requires": dict(artifact.manifest.requires)}
        raise AssertionError("an engine of another GPU was accepted")

    for check in (dynamic, ownership_and_graphs, threads, device_arrays, bound, data_dependent, preflight):
        results.step(check, step="check", check=check.__name__)


def conformance_checks(results: Results, options: Mapping[str, Any], seconds: float = 90) -> None:
    """In a process of its own: a broken library could take all down."""
    code = (
        f"import json\noptions = {dict(options)!r}\n"
        "from edgeinfer.testing import conformance\n"
        "for check in conformance.CHECKS:\n"
        "    row = {'step': 'conformance', 'check': check.__name__}\n"
        "    try: check('tensorrt', options)\n"
        "    except BaseException as error: row['error'] = f'{type(error).__name__}: {error}'[:600]\n"
        "    print(json.dumps(row), flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    for line in process.stdout or ():
        if line.startswith("{"):
            results.add(**json.loads(line))
    timer.cancel()
    if process.wait():
        raise RuntimeError(f"the process ended with {process.returncode} (-9: out of its {seconds} s)")


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


def host_part(results: Results, folder: Path, names: list[str], options: Mapping[str, Any]) -> None:
    """Plain `infer` beside the bound mode, at several batches; see `host_copies`."""
    results.step(lambda: host_copies.check(options), step="check", check="host copies")
    for name in names:
        model = ei.Model.load(folder / f"{name}.onnx")
        for precision in ("float16", "float32"):
            made: dict[str, Any] = {}

            def build(
                made: Any = made, model: Any = model, name: str = name, precision: str = precision
            ) -> dict[str, Any]:
                cache = results.scratch / "cache"
                made["artifact"] = host_copies.build(model, SHAPES[name], precision, options, cache)
                return {"engine_mb": made["artifact"].disk_bytes / 1e6}

            keys = {"model": name, "precision": precision}
            results.step(build, step="host build", **keys)
            for batch in host_copies.BATCHES if made else ():
                run = lambda made=made, name=name, batch=batch: host_copies.measure(  # noqa: E731
                    made["artifact"], SHAPES[name], batch, latency, 2.0
                )
                results.step(run, step="host", batch=batch, **keys)


def host_table(rows: list[dict[str, Any]]) -> str:
    from edgeinfer.display import Table

    ways = ("bound", "again", "fresh", "device outputs")
    ratios = ("again / bound", "fresh / bound", "again p99 / p50", "fresh p99 / p50")
    cells = [
        (
            *(row["model"], row["precision"], row["batch"]),
            *(f"{row[way]['p50_ms']:.3f}" for way in ways),
            *(f"{row[ratio]:.2f}" for ratio in ratios),
        )
        for row in rows
        if row["step"] == "host" and "error" not in row
    ]
    aim = f"{host_copies.AIM_RATIO} times bound, p99/p50 {host_copies.AIM_TAIL}"
    title = f"p50 in ms, host to host; the aim is {aim}"
    return str(Table(title=title, columns=("model", "precision", "batch", *ways, *ratios), rows=cells))


def prepared(results: Results, folder: Path, names: list[str]) -> Path:
    """The models as the peers run them: constants folded and BatchNorm fused, as for TensorRT."""
    out = results.scratch / "prepared"
    for name in names:
        for precision in ("float32", "float16"):
            (out / precision).mkdir(parents=True, exist_ok=True)
            in_precision(name, ei.Model.load(folder / f"{name}.onnx"), precision).save(
                out / precision / f"{name}.onnx"
            )
    return out


def peer(results: Results, step: str, python: str, folder: Path, names: list[str], seconds: float) -> None:
    """Run the script of a peer in the interpreter that has it, and take its rows over."""
    script = Path(__file__).with_name(
        {"torch": "onnx_torch.py", "onnxruntime cuda": "onnxruntime_cuda.py"}[step]
    )
    shapes = json.dumps({name: SHAPES[name] for name in names})
    command = [python, str(script), "--models", str(folder), "--shapes", shapes, "--seconds", str(seconds)]
    # The other interpreter must not see this one's packages and libraries, but needs the driver's.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if "PYTHONHOME" in os.environ:
        own = str(Path(sys.prefix).parent)
        libraries = clean.get("LD_LIBRARY_PATH", "").split(":")
        clean["LD_LIBRARY_PATH"] = ":".join(path for path in libraries if not path.startswith(own))
    started = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 60, env=clean, check=False
    )
    rows = [json.loads(line) for line in started.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        results.add(**row)
    if started.returncode:
        results.add(step=step, error=started.stderr.strip()[-800:] or f"exit status {started.returncode}")


def table(rows: list[dict[str, Any]]) -> str:
    from edgeinfer.display import Table

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--torch-python", default=sys.executable, help="the interpreter that has PyTorch")
    parser.add_argument("--ort-python", default=sys.executable, help="the one that has onnxruntime-gpu")
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    parser.add_argument(
        "--part", choices=("all", "host"), default="all", help="host: the copies on the host alone"
    )
    given = parser.parse_args()
    results = Results(given.out, given.minutes)
    names = [n for n in SHAPES if (given.models / f"{n}.onnx").is_file()]
    names = [n for n in names if not given.only or n in given.only.split(",")]
    gpus, reason = find_gpus()
    results.add(step="environment", flavours=list(map(str, find_flavours())), gpus=gpus, reason=reason)
    if not gpus:
        sys.exit(f"{reason}. This benchmark needs an NVIDIA GPU.")
    options = options_for_flavour()
    if given.part == "host":
        host_part(results, given.models, [n for n in names if n in HOST_MODELS], options)
        finish(results, host_table(results.rows))
        return
    results.step(lambda: conformance_checks(results, options), step="conformance process")
    check_running(results, options)
    # The peers before the long list: their share of the time is known.
    folder = prepared(results, given.models, names)
    for step, python in (("torch", given.torch_python), ("onnxruntime cuda", given.ort_python)):
        seconds = min(75, results.left_s / 4)
        results.step(
            lambda step=step, python=python, seconds=seconds: peer(
                results, step, python, folder if step != "torch" else folder / "float32", names, seconds
            ),
            step=f"{step} process",
        )
    for name in names:
        model = ei.Model.load(given.models / f"{name}.onnx")
        for precision in PRECISIONS:
            measure(results, name, model, precision, options, results.scratch / "cache")
            (given.out / "table.txt").write_text(table(results.rows))
    host_part(results, given.models, [n for n in names if n in HOST_MODELS], options)
    finish(results, table(results.rows) + "\n" + host_table(results.rows))


def finish(results: Results, text: str) -> None:
    (results.out / "table.txt").write_text(text)
    print(text)
    failed = [row for row in results.rows if "error" in row]
    print(f"{len(results.rows)} steps, {len(failed)} failed")


if __name__ == "__main__":
    main()
