"""An application and an agent in one process for a long time; the agent swaps models under the requests.

    python benchmarks/soak.py MINUTES [--every 20] [--threads 2] [--pause-ms 20] [--csv FILE]

Two models, one in ONNX Runtime and one in OpenVINO, answer requests in threads. Every `--every` seconds a
document of assignments names the other of two versions of both, and the agent downloads, stages (in child
processes) and activates it. Every answer is compared with the version's own. Each ten seconds it is noted
what the process holds: memory as proportional set size, file descriptors, threads, Python objects. At the
end: the means of the first and the last quarter, and the slope of a line through all samples but those of the
first tenth, in which caches fill.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

import edgeinfer as ei
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.application import Application, connect
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.transport import FolderTransport
from tests.fleet.device.kit import DEVICE, NOW, Shelf, assign

SAMPLE_S = 10.0
MODELS = {"m": "onnxruntime", "n": "openvino"}
INPUT = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)


def model(version: int) -> ei.Model:
    """Four convolutions, 0.9 MB of weights."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 3, 32, 32] x) => (float[1, 128, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0)  b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w1)  d = Relu(c)
            e = Conv<pads = [1, 1, 1, 1]>(d, w2)  f = Relu(e)
            y = Conv<pads = [1, 1, 1, 1]>(f, w3)
        }"""
    )
    rng = np.random.default_rng(version)
    for number, (outputs, inputs) in enumerate(((32, 3), (64, 32), (128, 64), (128, 128))):
        weight = rng.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(inputs * 9)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
    return ei.Model.load(proto)


class Requests:
    """Asks one model without end, and compares."""

    def __init__(self, application: Application, name: str, expected: dict[str, np.ndarray], pause_s: float):
        self.handle = application.model(name, accepts=f"{name}/1")
        self.expected, self.pause_s = expected, pause_s
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(self.pause_s):
            try:
                with self.handle.request() as session:
                    version, answer = session.version, session.infer({"x": INPUT})["y"]
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            self.answered[version] += 1
            if not np.allclose(answer, self.expected[version], rtol=1e-3, atol=1e-3):
                self.wrong.append(
                    f"version {version}: differs by {abs(answer - self.expected[version]).max()}"
                )


def held() -> dict[str, float]:
    """What this process holds now."""
    text = Path("/proc/self/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return {
        "pss_mb": pss / 1024,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "objects": len(gc.get_objects()),
    }


def publish(shelf: Shelf, folder: Path) -> tuple[dict[tuple[str, int], object], dict[str, np.ndarray]]:
    """Publish two versions of both models; return the releases and what each version answers."""
    releases, answers = {}, {}
    for version in (1, 2):
        for name, backend in MODELS.items():
            artifact = ei.compile(model(version), target=backend)
            with ei.load(artifact) as session:
                answers[str(version)] = session.infer({"x": INPUT})["y"]
            path = folder / f"{name}{version}.edge"
            golden = artifact.with_golden({"x": INPUT}, {"y": answers[str(version)]}, rtol=1e-3, atol=1e-3)
            golden.save(path)
            releases[name, version] = shelf.publish(name, str(version), path, interface=f"{name}/1")
    return releases, answers


def soak(options: argparse.Namespace, folder: Path) -> int:
    shelf = Shelf(folder / "shelf")
    releases, answers = publish(shelf, folder)
    begun = time.monotonic()
    settings = AgentOptions(soak_s=2, poll_s=0.5, staging_runs=10, may_lack=("temperature_c", "power_w"))
    agent = Agent(
        folder / "device",
        source=str(shelf.folder),
        device=DEVICE,
        trust=shelf,
        transport=FolderTransport(shelf.folder, DEVICE),
        options=settings,
        clock=lambda: NOW + time.monotonic() - begun,
    )
    stop = threading.Event()
    swaps, refused = 0, 0

    def want(number: int) -> None:
        version = 1 + number % 2
        shelf.desire(*(assign(releases[name, version], number) for name in MODELS), at=NOW + number)

    want(1)
    while not agent.step().final:
        time.sleep(0.2)
    application = connect(folder / "device", follow_s=0.2)
    asking = [
        Requests(application, name, answers, options.pause_ms / 1000)
        for name in MODELS
        for _ in range(options.threads)
    ]
    threads = [threading.Thread(target=requests.run, args=(stop,)) for requests in asking]
    for thread in threads:
        thread.start()
    samples: list[dict[str, float]] = []

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            samples.append({"minutes": (time.monotonic() - begun) / 60, "swaps": swaps, **held()})

    threads.append(threading.Thread(target=sample))
    threads[-1].start()
    end, number = begun + options.minutes * 60, 1
    swapped = time.monotonic()
    waiting = False
    while time.monotonic() < end:
        now = time.monotonic()
        if not waiting and now - swapped >= options.every:
            number, waiting, swapped = number + 1, True, now
            want(number)
        phase = agent.step()
        if waiting and phase.final and agent.device.state.floors.generations["m"] == (1, number):
            waiting = False
            swaps += phase is Phase.COMMITTED
            refused += phase is not Phase.COMMITTED
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    application.close()
    agent.close()
    if options.csv:
        write(options.csv, samples)
    wrong = [line for requests in asking for line in requests.wrong]
    answered = sum((requests.answered for requests in asking), Counter())
    print(
        f"{(time.monotonic() - begun) / 60:.1f} minutes, {swaps} swaps of both models, {refused} refused; "
        f"{answered.total():,} requests answered ({dict(answered)}), {len(wrong)} wrong or failed {wrong[:3]}"
    )
    report(samples)
    return int(bool(wrong))


def report(samples: list[dict[str, float]]) -> None:
    """Print what was held over time."""
    quarter = max(len(samples) // 4, 1)
    later = samples[len(samples) // 10 :]
    hours = np.array([sample["minutes"] for sample in later]) / 60
    print(f"{len(samples)} samples\n{'':12} first quarter  last quarter   least     most   slope an hour")
    for name in ("pss_mb", "descriptors", "threads", "objects"):
        values = np.array([sample[name] for sample in samples])
        slope = np.polyfit(hours, [sample[name] for sample in later], 1)[0] if len(later) > 2 else 0.0
        print(
            f"{name:12} {values[:quarter].mean():13,.1f} {values[-quarter:].mean():13,.1f} "
            f"{values.min():8,.0f} {values.max():8,.0f} {slope:+12,.2f}"
        )


def write(path: str, samples: list[dict[str, float]]) -> None:
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(samples[0]))
        writer.writeheader()
        writer.writerows(samples)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two swaps")
    parser.add_argument("--threads", type=int, default=2, help="threads a model")
    parser.add_argument("--pause-ms", type=float, default=20.0, help="between two requests of a thread")
    parser.add_argument("--csv", help="where all samples are written")
    with tempfile.TemporaryDirectory(prefix="edgeinfer-soak-") as folder:
        return soak(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    sys.exit(main())
