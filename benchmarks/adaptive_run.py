"""`AdaptiveSession` on a real model with a load generator beside it.

    python benchmarks/adaptive_run.py MODELS [--seconds 12] [--deadline-ms MS] [--steady]

Variants of MobileNetV2: float32, int8, and int8 with 60 % of the products. For a third of the time the
machine is left alone, for a third as many processes as it has cores compute beside it, for a third it is left
alone again. First each variant runs alone under that, then the adaptive session.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import edgeinfer as ei
from edgeinfer.transforms import FuseBatchNorm, PruneChannels, QuantizeStatic, Simplify

BUSY = "import numpy as np\na = np.ones((400, 400), np.float32)\nwhile True: a @ a"


def artifacts(model: Path) -> dict[str, ei.Artifact]:
    feed = [{"input": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}]
    plain = ei.optimize(model, [Simplify(), FuseBatchNorm()])
    quantize = QuantizeStatic(calibration=feed, target="openvino", method="minmax")
    made = {
        "float32": plain,
        "int8": ei.optimize(plain, [quantize]),
        "int8, 60 % MACs": ei.optimize(plain, [PruneChannels(keep_macs=0.6), quantize]),
    }
    return {name: ei.compile(m, "openvino", options={"threads": 1}) for name, m in made.items()}


@contextlib.contextmanager
def load_beside() -> Iterator[None]:
    count = len(os.sched_getaffinity(0))
    own = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    others = [subprocess.Popen([sys.executable, "-c", BUSY], env={**os.environ, **own}) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def phases(infer: Callable[[dict], object], feed: dict, seconds: float) -> list[np.ndarray]:
    """Return the latencies of each third in ms."""
    found = []
    for busy in (False, True, False):
        with load_beside() if busy else contextlib.nullcontext():
            time.sleep(0.5)
            end, latencies = time.perf_counter() + seconds / 3, []
            while time.perf_counter() < end:
                started = time.perf_counter()
                infer(feed)
                latencies.append(1e3 * (time.perf_counter() - started))
        found.append(np.array(latencies))
    return found


def line(name: str, found: list[np.ndarray], deadline_ms: float) -> str:
    parts = [
        f"{np.percentile(own, 50):6.1f} {np.percentile(own, 99):6.1f} {np.mean(own > deadline_ms):6.1%}"
        for own in found
    ]
    missed = np.mean(np.concatenate(found) > deadline_ms)
    return f"{name:18s} {' | '.join(parts)} | {missed:6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--deadline-ms", type=float)
    parser.add_argument("--steady", action="store_true", help="real-time priority for the last line")
    arguments = parser.parse_args()
    made = artifacts(arguments.models / "mobilenet_v2_1.0_224.onnx")
    feed = {"input": np.zeros((1, 3, 224, 224), np.float32)}
    with ei.load(made["float32"]) as session:
        idle = ei.benchmark(session, feed, seconds=2).p50_ms
    deadline_ms = arguments.deadline_ms or 2.0 * idle
    print(f"deadline {deadline_ms:.1f} ms; p50, p99 (ms) and misses: alone | under load | alone | all")
    for name, artifact in made.items():
        with ei.load(artifact) as session:
            print(line(name, phases(session.infer, feed, arguments.seconds), deadline_ms), flush=True)
    with ei.AdaptiveSession(made, deadline_ms=deadline_ms, feeds=feed) as session:
        print(line("adaptive", phases(session.infer, feed, arguments.seconds), deadline_ms))
        print(session)
        for switch in session.switches:
            print(f"  request {switch.request}: {switch.before} -> {switch.after}, {switch.reason}")
    if arguments.steady:
        with ei.load(made["float32"], steady=True) as session:
            print(line("float32, steady", phases(session.infer, feed, arguments.seconds), deadline_ms))
            for measure in session.steady:
                print(f"  {measure.name}: {measure.detail}")


if __name__ == "__main__":
    main()
