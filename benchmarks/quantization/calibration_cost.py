"""What calibration costs beside plain forward passes and the peers: CPU time and peak memory on MobileNetV2.

    python benchmarks/quantization/calibration_cost.py DATA [--peer-python PYTHON] [--repetitions 3]

DATA holds `models/mobilenet_v2_1.0_224.onnx` and `data/imagenet_samples_256/`, of which every tenth image is
cropped, flipped and brightened at random until there are enough samples. The peers (ONNX Runtime's
`quantize_static`, NNCF) run under PYTHON; without it a virtual environment is made and they are installed.

Every figure is from a child process of its own with one thread on one core; in each repetition all take
turns, and a ratio is that to the plain forward passes of the same repetition. Importing is not counted,
reading the samples is, for all alike. CPU time is compared, because others may load the machine.

Ours is counted twice: `observe` with the choice of the ranges (what "calibration" is), and all of
`QuantizeStatic`, with ranges by MSE. The peers cannot be asked for less than the whole of their call; NNCF's
bias correction can be left out. ONNX Runtime's entropy calibrator keeps all activations, so it is run with
few samples, and its time for all is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PEERS = ("nncf", "onnx", "onnxruntime", "openvino")
INPUT = "input"
MEMORY_SAMPLES = (20, 100)


# --- What is measured: each prepares, imports included, and returns the function to be timed. ---


def samples(paths: list[Path]) -> Iterator[dict[str, np.ndarray]]:
    for path in paths:
        yield {INPUT: np.load(path)}


def plain(model: Path, paths: list[Path]) -> Callable[[], object]:
    import edgeinfer as ei

    session = ei.load(ei.compile(model, "onnxruntime", options={"threads": 1}))
    session.infer(next(samples(paths)))

    def run() -> None:
        for feed in samples(paths):
            session.infer(feed)

    return run


def ours(method: str) -> Callable[[Path, list[Path]], Callable[[], object]]:
    def prepare(model: Path, paths: list[Path]) -> Callable[[], object]:
        from edgeinfer.calibration.calibration import as_calibration, observe
        from edgeinfer.calibration.observers import make_observer
        from edgeinfer.model.model import Model

        loaded = Model.load(model)
        weighted = [node for node in loaded.ir.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
        names = dict.fromkeys(str(node.inputs[0].name) for node in weighted)

        def run() -> object:
            observers = {name: make_observer(method) for name in names}
            data = as_calibration(lambda: samples(paths), loaded.signature)
            observe(loaded, data, observers, threads=1, progress=False)
            return [observer.range() for observer in observers.values()]

        return run

    return prepare


def ours_whole(model: Path, paths: list[Path]) -> Callable[[], object]:
    from edgeinfer.model.model import Model
    from edgeinfer.transforms import QuantizeStatic

    loaded = Model.load(model)
    return lambda: QuantizeStatic(calibration=lambda: samples(paths)).apply(loaded)


def one_thread() -> None:
    """Give every ONNX Runtime session of this process one thread: their code does not let one choose."""
    import onnxruntime as ort

    create = ort.InferenceSession.__init__

    def initialize(self: Any, source: Any, sess_options: Any = None, *args: Any, **options: Any) -> None:
        settings = sess_options or ort.SessionOptions()
        settings.intra_op_num_threads = 1
        create(self, source, settings, *args, **options)

    ort.InferenceSession.__init__ = initialize


def ort_static(method: str) -> Callable[[Path, list[Path]], Callable[[], object]]:
    def prepare(model: Path, paths: list[Path]) -> Callable[[], object]:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantType,
            quantize_static,
        )

        one_thread()

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.feeds = samples(paths)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.feeds, None)

        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                quantize_static(
                    str(model),
                    str(Path(folder) / "quantized.onnx"),
                    Reader(),
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=getattr(CalibrationMethod, method),
                )

        return run

    return prepare


def nncf(frontend: str, *, correct: bool = True) -> Callable[[Path, list[Path]], Callable[[], object]]:
    def prepare(model: Path, paths: list[Path]) -> Callable[[], object]:
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

        one_thread()
        if frontend == "openvino":
            import openvino as ov

            loaded = ov.Core().read_model(model)
        else:
            import onnx

            loaded = onnx.load(model)
        dataset = nncf.Dataset(paths, lambda path: {INPUT: np.load(path)})
        advanced = AdvancedQuantizationParameters(disable_bias_correction=not correct)
        return lambda: nncf.quantize(
            loaded, dataset, subset_size=len(paths), fast_bias_correction=True, advanced_parameters=advanced
        )

    return prepare


# For each: how to prepare it, and whether it is a peer.
CONTENDERS: dict[str, tuple[Callable[[Path, list[Path]], Callable[[], object]], bool]] = {
    "plain forward passes": (plain, False),
    "ours, minmax": (ours("minmax"), False),
    "ours, mse": (ours("mse"), False),
    "ours, entropy": (ours("entropy"), False),
    "ours, QuantizeStatic": (ours_whole, False),
    "ORT MinMax": (ort_static("MinMax"), True),
    "ORT Entropy": (ort_static("Entropy"), True),
    "NNCF OpenVINO": (nncf("openvino"), True),
    "NNCF OpenVINO, no bias correction": (nncf("openvino", correct=False), True),
    "NNCF ONNX": (nncf("onnx"), True),
}


# --- Measuring one, in a child process. ---


def peak_mb() -> float:
    """Return this process's own peak; `getrusage` would start from that of the process which made it."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(name: str, model: Path, paths: list[Path]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    run = CONTENDERS[name][0](model, paths)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_mb": peak_mb()}
    print(json.dumps(found))


def measure(python: str, name: str, model: Path, folder: Path, count: int) -> dict[str, float]:
    command = [
        python,
        __file__,
        "--worker",
        name,
        "--model",
        str(model),
        str(folder),
        "--samples",
        str(count),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- All of them. ---


def write_samples(images: Path, folder: Path, count: int) -> None:
    """Write crops of (1, 3, 224, 224), float32, scaled to -1 to 1."""
    from PIL import Image

    files = sorted(images.glob("*.*"))[::10]
    rng = np.random.default_rng(0)
    for i in range(count):
        with Image.open(files[i % len(files)]) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32)
        top, left = (rng.integers(size - 224 + 1) for size in pixels.shape[:2])
        crop = pixels[top : top + 224, left : left + 224][:, :: rng.choice((-1, 1))]
        crop = np.clip(crop * rng.uniform(0.7, 1.3), 0, 255)
        np.save(folder / f"{i:04}.npy", np.ascontiguousarray(crop.transpose(2, 0, 1))[None] / 127.5 - 1)


def peer_environment(folder: Path) -> str:
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return python


def compare(options: argparse.Namespace) -> None:
    model = options.data / "models" / "mobilenet_v2_1.0_224.onnx"
    total = options.samples
    with tempfile.TemporaryDirectory(prefix="calibration-cost-") as temporary:
        folder = Path(temporary) / "samples"
        folder.mkdir()
        write_samples(options.data / "data" / "imagenet_samples_256", folder, total)
        peer = options.peer_python or peer_environment(Path(temporary) / "venv")
        names = list(CONTENDERS)
        counts = {name: options.entropy_samples if name == "ORT Entropy" else total for name in names}

        def one(name: str, count: int) -> dict[str, float]:
            found = measure(peer if CONTENDERS[name][1] else sys.executable, name, model, folder, count)
            print(f"  {name}, {count} samples: {found}", file=sys.stderr, flush=True)
            return found

        rounds = [{name: one(name, counts[name]) for name in names} for _ in range(options.repetitions)]
        smaller = {
            name: [one(name, n) if n < counts[name] else None for n in MEMORY_SAMPLES] for name in names
        }
    base = names[0]
    print(f"{total} samples, one thread, median of {options.repetitions} repetitions")
    print(f"{'':34} {'CPU s':>7} {'wall s':>7} {'ratio':>6}")
    for name in names:
        factor = total / counts[name]
        cpu = statistics.median(found[name]["cpu_s"] for found in rounds) * factor
        wall = statistics.median(found[name]["wall_s"] for found in rounds) * factor
        ratio = statistics.median(found[name]["cpu_s"] / found[base]["cpu_s"] for found in rounds) * factor
        note = f"  extrapolated from {counts[name]} samples" if factor != 1 else ""
        print(f"{name:34} {cpu:7.2f} {wall:7.2f} {ratio:6.2f}{note}")
    print(
        f"\nPeak memory (MB) {'':17} " + " ".join(f"{n:>7}" for n in (*MEMORY_SAMPLES, total)) + "  samples"
    )
    for name in names:
        peaks = dict(zip(MEMORY_SAMPLES, smaller[name], strict=True))
        shown = {n: found["peak_mb"] for n, found in peaks.items() if found is not None}
        shown[counts[name]] = max(found[name]["peak_mb"] for found in rounds)
        cells = (f"{shown[n]:7.0f}" if n in shown else f"{'-':>7}" for n in (*MEMORY_SAMPLES, total))
        print(f"{name:34} " + " ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", help="the interpreter of an environment that has the peers")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument(
        "--entropy-samples", type=int, default=20, help="samples for ORT's entropy calibrator"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.model, sorted(options.data.glob("*.npy"))[: options.samples])
    else:
        compare(options)


if __name__ == "__main__":
    main()
