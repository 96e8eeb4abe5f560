"""What `import edgeinfer; ei.load(path)` costs beside the bare runtime: processor time and memory.

    python benchmarks/device_import.py [--model model.onnx] [--rounds 20] [--backend onnxruntime openvino]

Each figure is from a fresh process; the processes take turns. The aim is at most 100 ms and 10 MB more than
loading the same graph in the bare runtime. Processor time counts all threads from the start of the process.
Other work on the machine only adds to it (it takes caches, and half of a core where two threads share one),
so on a busy machine the least of many rounds says most. Memory is the resident set when the model is loaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import edgeinfer as ei
from edgeinfer.demo import model_path

AIM_MS, AIM_MB = 100, 10
COST = """
import resource
usage = resource.getrusage(resource.RUSAGE_SELF)
resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS:")).split()[1]
print("COST", usage.ru_utime + usage.ru_stime, int(resident) * 1024)
"""
BARE = {
    "onnxruntime": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])
""",
    "openvino": """
import openvino
core = openvino.Core()
session = core.compile_model(
    core.read_model({model!r}), "CPU", {{"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}}
).create_infer_request()
""",
}
OURS = """
import edgeinfer as ei
session = ei.load({artifact!r}, options={{"threads": 1}})
"""
UNWANTED = ("onnx", "onnx_ir", "onnxscript", "sympy", "rich", "google.protobuf")
LISTING = "\nimport sys\nprint([name for name in {unwanted!r} if name in sys.modules])\n"


def cost(code: str, home: str) -> tuple[float, int]:
    """Return processor time in seconds and resident memory in bytes of a fresh process."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HOME": home}
    # As where it is installed: what was compiled once is read from then on.
    environment |= {"PYTHONPYCACHEPREFIX": str(Path(home) / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", code + COST], check=True, capture_output=True, text=True, env=environment
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("COST"))
    _, seconds, resident = line.split()
    return float(seconds), int(resident)


def measure(backend: str, model: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.edge"
        artifact = ei.compile(model, backend, options={"threads": 1}).save(path)
        # The very graph that is in the artifact, so that both load the same.
        graph = str(path / artifact.payload.entry)
        codes = {
            "bare runtime": BARE[backend].format(model=graph),
            "edgeinfer": OURS.format(artifact=str(path)),
        }
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in codes}
        for _ in range(rounds + 1):  # the first warms disks
            for name, code in codes.items():
                found[name].append(cost(code, folder))
        loaded = subprocess.run(
            [sys.executable, "-c", codes["edgeinfer"] + LISTING.format(unwanted=UNWANTED)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    print(f"{backend}, {model.name}, {rounds} processes each, in turns")
    for what, of in (("median", statistics.median), ("least", min)):
        bare, ours = ([of(values) for values in zip(*costs[1:], strict=True)] for costs in found.values())
        ms, mb = 1e3 * (ours[0] - bare[0]), (ours[1] - bare[1]) / 1e6
        print(
            f"  {what:6s}  bare {1e3 * bare[0]:6.1f} ms, {bare[1] / 1e6:6.1f} MB;"
            f"  edgeinfer {1e3 * ours[0]:6.1f} ms, {ours[1] / 1e6:6.1f} MB;"
            f"  added {ms:+6.1f} ms (aim {AIM_MS}), {mb:+5.1f} MB (aim {AIM_MB})"
        )
    print(f"  of {', '.join(UNWANTED)}, edgeinfer imported {loaded}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--backend", nargs="+", default=list(BARE), choices=list(BARE))
    arguments = parser.parse_args()
    for backend in arguments.backend:
        measure(backend, arguments.model, arguments.rounds)


if __name__ == "__main__":
    main()
