"""An application and an agent in one process for a long time; the agent swaps models under the requests.

    python benchmarks/soak.py MINUTES [--every 20] [--threads 2] [--pause-ms 20] [--folder FOLDER] [--untried]

Two models, one in ONNX Runtime and one in OpenVINO, answer requests in threads. Every `--every` seconds new
releases of both are published, with other weights than those that run, and the agent downloads, stages (in
child processes) and activates them. Every answer is compared with its version's own. With `--untried` nothing
is staged and no soak is waited for, so that many swaps fit into a minute.

FOLDER gets, line by line, `samples.csv`, what the process holds each ten seconds, and `updates.csv`, how each
update ended and why. At the end (also after SIGTERM): the means of the first and last quarter, and the slope
of a line through all samples but those of the first tenth, in which caches fill.

`pss_mb` is the proportional set size: it moves when another process begins or ends to share a library.
`anonymous_mb` is of this process alone; `in_use_mb` is what malloc gave out and did not get back, so the rest
of the anonymous memory that grows is the allocator's.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

import edgeinfer as ei
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.application import Application, connect
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.transport import FolderTransport
from tests.fleet.device.kit import DEVICE, NOW, PassingChecker, Shelf, assign

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


class Log:
    """Lines of a table, each on disk as soon as it is known."""

    def __init__(self, path: Path | None) -> None:
        self.lines: list[dict[str, Any]] = []
        self._file = path.open("w", newline="") if path is not None else None

    def add(self, **line: Any) -> None:
        self.lines.append(line)
        if self._file is not None:
            writer = csv.DictWriter(self._file, list(line))
            if len(self.lines) == 1:
                writer.writeheader()
            writer.writerow(line)
            self._file.flush()


class Requests:
    """Asks one model without end, and compares."""

    def __init__(self, application: Application, name: str, expected: list[np.ndarray], pause_s: float):
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
            expected = self.expected[int(version) % 2]
            if not np.allclose(answer, expected, rtol=1e-3, atol=1e-3):
                self.wrong.append(f"version {version}: differs by {abs(answer - expected).max()}")


class _Mallinfo(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use_mb() -> float:
    """Return what malloc gave out, where it is the one of glibc."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0.0
    function.restype = _Mallinfo
    found = function()
    return (found.uordblks + found.hblkhd) / 2**20


def held() -> dict[str, float]:
    """Return what this process holds now."""
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in text.splitlines()[1:]}
    return {
        "pss_mb": sizes["Pss"],
        "anonymous_mb": sizes["Anonymous"],
        "in_use_mb": in_use_mb(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "objects": len(gc.get_objects()),
    }


class Versions:
    """Releases of both models; those of an odd number have other weights than those of an even one."""

    def __init__(self, shelf: Shelf, folder: Path) -> None:
        self.shelf, self.folder = shelf, folder
        self.answers = [np.zeros(0), np.zeros(0)]
        for parity in (0, 1):
            for name, backend in MODELS.items():
                artifact = ei.compile(model(parity), target=backend)
                with ei.load(artifact) as session:
                    answer = session.infer({"x": INPUT})["y"]
                golden = artifact.with_golden({"x": INPUT}, {"y": answer}, rtol=1e-3, atol=1e-3)
                golden.save(folder / f"{name}{parity}.edge")
                self.answers[parity] = answer

    def want(self, number: int) -> None:
        """Publish the releases of a number, and assign them."""
        releases = [
            self.shelf.publish(
                name, str(number), self.folder / f"{name}{number % 2}.edge", interface=f"{name}/1"
            )
            for name in MODELS
        ]
        self.shelf.desire(*(assign(release, number) for release in releases), at=NOW + number)
        for release in self.shelf.releases.copy().values():  # so that this list stays short
            if int(release.version) < number - 3:
                del self.shelf.releases[release.digest]
                (self.shelf.folder / "releases" / f"{release.digest}.json").unlink()


def soak(options: argparse.Namespace, folder: Path) -> int:
    shelf = Shelf(folder / "shelf")
    versions = Versions(shelf, folder)
    begun = time.monotonic()
    settings = AgentOptions(
        soak_s=0 if options.untried else 2,
        poll_s=0.01 if options.untried else 0.5,
        staging_runs=10,
        may_lack=("temperature_c", "power_w"),
    )
    agent = Agent(
        folder / "device",
        source=str(shelf.folder),
        device=DEVICE,
        trust=shelf,
        transport=FolderTransport(shelf.folder, DEVICE),
        options=settings,
        clock=lambda: NOW + time.monotonic() - begun,
        checker=PassingChecker() if options.untried else None,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    versions.want(1)
    while not agent.step().final:
        time.sleep(0.2)
    application = connect(folder / "device", follow_s=0.01 if options.untried else 0.2)
    asking = [
        Requests(application, name, versions.answers, options.pause_ms / 1000)
        for name in MODELS
        for _ in range(options.threads)
    ]
    threads = [threading.Thread(target=requests.run, args=(stop,)) for requests in asking]
    samples = Log(options.folder and options.folder / "samples.csv")
    updates = Log(options.folder and options.folder / "updates.csv")

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            swaps = sum(update["phase"] == Phase.COMMITTED.value for update in updates.lines)
            samples.add(minutes=(time.monotonic() - begun) / 60, swaps=swaps, **held())

    threads.append(threading.Thread(target=sample))
    for thread in threads:
        thread.start()
    follow(agent, application, versions, updates, options, stop)
    stop.set()
    for thread in threads:
        thread.join()
    application.close()
    agent.close()
    wrong = [line for requests in asking for line in requests.wrong]
    answered = sum(requests.answered.total() for requests in asking)
    ends = Counter(update["phase"] for update in updates.lines)
    print(
        f"{(time.monotonic() - begun) / 60:.1f} minutes, updates of both models: {dict(ends)}; "
        f"{answered:,} requests answered, {len(wrong)} wrong or failed {wrong[:3]}"
    )
    for line in [update for update in updates.lines if update["phase"] != Phase.COMMITTED.value][:20]:
        print(f"update {line['number']}: {line['phase']} {line['code']}: {line['detail']}")
    report(samples.lines)
    return int(bool(wrong))


def follow(
    agent: Agent,
    application: Application,
    versions: Versions,
    updates: Log,
    options: argparse.Namespace,
    stop: threading.Event,
) -> None:
    """Swap the models again and again, and note how each update ended."""
    end, number = time.monotonic() + options.minutes * 60, 1
    begun = swapped = time.monotonic()
    waiting = False
    while time.monotonic() < end and not stop.is_set():
        now = time.monotonic()
        if not waiting and now - swapped >= options.every:
            number, waiting, swapped = number + 1, True, now
            versions.want(number)
        phase = agent.step()
        update = agent.device.state.update
        if waiting and phase.final and agent.device.state.floors.generations["m"] == (1, number):
            waiting = False
            updates.add(
                minutes=(now - begun) / 60,
                number=number,
                seconds=time.monotonic() - swapped,
                phase=phase.value,
                code=update.code if update is not None else "",
                detail=update.detail if update is not None else "",
            )
            while options.untried and application.generation != agent.device.generations.current():
                time.sleep(0.005)
        time.sleep(0.005 if options.untried else 0.2)


def report(samples: list[dict[str, Any]]) -> None:
    """Print what was held over time."""
    if not samples:
        return
    quarter = max(len(samples) // 4, 1)
    later = samples[len(samples) // 10 :]
    hours = np.array([sample["minutes"] for sample in later]) / 60
    print(f"{len(samples)} samples\n{'':12} first quarter  last quarter   least     most   slope an hour")
    for name in ("pss_mb", "anonymous_mb", "in_use_mb", "descriptors", "threads", "objects"):
        values = np.array([sample[name] for sample in samples])
        slope = np.polyfit(hours, [sample[name] for sample in later], 1)[0] if len(later) > 2 else 0.0
        print(
            f"{name:12} {values[:quarter].mean():13,.1f} {values[-quarter:].mean():13,.1f} "
            f"{values.min():8,.0f} {values.max():8,.0f} {slope:+12,.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two swaps")
    parser.add_argument("--threads", type=int, default=2, help="threads a model")
    parser.add_argument("--pause-ms", type=float, default=20.0, help="between two requests of a thread")
    parser.add_argument("--folder", type=Path, help="where samples and updates are written")
    parser.add_argument("--untried", action="store_true", help="swap without a trial of what is new")
    with tempfile.TemporaryDirectory(prefix="edgeinfer-soak-") as folder:
        options = parser.parse_args()
        if options.folder is not None:
            options.folder.mkdir(parents=True, exist_ok=True)
        return soak(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
