"""A device of a fleet on one machine: an update is killed and resumed, compared, rolled back, brought by USB.

    pip install 'edgeinfer[fleet,openvino]'
    python examples/fleet_device.py

The operator publishes signed releases of the digits model, each with an ONNX Runtime and an OpenVINO variant,
and serves them over HTTP. The agent is a process of its own, as on a device. This process is the application:
a thread asks without pause, from the first answer to the last, and counts what fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import edgeinfer as ei
from edgeinfer.demo import load_digits, model_path
from edgeinfer.fleet import AgentStatus, Phase, Report
from edgeinfer.fleet.device.assignment import Assignment, SignedAssignments
from edgeinfer.fleet.operator.assigning import signer_of
from edgeinfer.fleet.operator.usb import export_usb
from edgeinfer.transforms import FuseBatchNorm, QuantizeStatic, Simplify

DEVICE = "camera-1"
DIGITS = load_digits()
OPTIONS = {
    "poll_s": 0.5,
    "tick_s": 0.2,
    "soak_s": 4,
    "soak_requests": 100,
    "shadow_requests": 100,
    "max_slowdown": 50,  # at p99, and this machine may be busy
    "may_lack": "('temperature_c', 'power_w')",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        operator = Operator(folder / "fleet")
        url = stack.enter_context(serving(operator.repository))
        print(f"A repository with signed metadata is served at {url}")

        float32 = ei.optimize(model_path(), [Simplify(), FuseBatchNorm()])
        first = operator.publish("1", float32, ei.Budget(latency_p99_ms=200))
        device = Device(folder / "device", url, operator)
        operator.assign(first, n=1)
        device.start()
        stack.callback(device.stop)
        device.wait_for(1, Phase.COMMITTED)
        say("First install", f"{device.loaded()}")

        with Client(device.folder) as client:
            int8 = [Simplify(), FuseBatchNorm(), QuantizeStatic(calibration=DIGITS.calibration_feeds())]
            second = operator.publish(
                "2", ei.optimize(model_path(), int8), ei.Budget(latency_p99_ms=200, peak_bytes="1 GB")
            )
            operator.assign(second, n=2, stage="shadow")
            device.wait_for(2, Phase.STAGING)
            device.kill()
            say("kill -9 while the new model is tried", f"the application still has {client.version()}")
            device.start()
            device.wait_for(2, Phase.COMMITTED)
            time.sleep(1)  # the last reports come
            say("Resumed, compared on live inputs, committed", f"{device.loaded()}; {operator.compared(2)}")

            limit_ms = client.limit_ms()
            third = operator.publish("3", ei.optimize(tuned(), int8), ei.Budget(latency_p99_ms=limit_ms))
            operator.assign(third, n=3)
            device.wait_for(3, Phase.SOAKING)
            say("Downloaded", operator.downloaded(2) + "; " + operator.downloaded(3))
            client.batch = 4_000  # what the publisher did not measure
            device.wait_for(3, Phase.ROLLED_BACK)
            client.batch = 1
            say(f"Rolled back by the limit of {limit_ms:.1f} ms", AgentStatus.of(device.folder).detail)

            device.stop()
            fourth = operator.publish("4", ei.optimize(model_path(), [Simplify()]), ei.Budget())
            operator.assign(fourth, n=4)
            stick = folder / "stick"
            export_usb(operator.fleet.repository, stick)
            device.import_from(stick)
            device.wait_for(4, Phase.COMMITTED)
            say("Updated from a USB folder", device.loaded())
            time.sleep(1)

        print(f"\n{client.answered.total()} requests answered, by release: {dict(client.answered)}")
        print(f"{len(client.failed)} requests failed {client.failed[:3]}")
        print(f"{client.right / client.answered.total():.2%} of the answers were right")
        reports = operator.reports()
        print(f"{len(reports)} reports came, each signed with the key of {DEVICE}: {phases(reports)}")
        assert not client.failed
        assert set(client.answered) == {"1", "2", "3", "4"}


class Operator:
    """Publishes, assigns, and reads the reports."""

    def __init__(self, folder: Path) -> None:
        self.fleet = ei.fleet.open(folder)
        self.repository = folder / "repository"
        self.key = b""
        self.published: dict[int, ei.fleet.Release] = {}

    def publish(self, version: str, model: ei.Model, budget: ei.Budget) -> ei.fleet.Release:
        artifacts = [ei.compile(model, target=target) for target in ("onnxruntime", "openvino")]
        golden = [{"images": DIGITS.images[i : i + 1]} for i in range(4)]
        release = self.fleet.publish(
            "digits", artifacts, golden=golden, interface="digits/1", budget=budget, version=version
        )
        deltas = ", ".join(f"{delta.size} bytes" for delta in release.deltas) or "none that is worth it"
        print(f"Published {release.version}: {[v.name for v in release.variants]}, deltas: {deltas}")
        self.published[int(version)] = release
        return release

    def assign(self, release: ei.fleet.Release, n: int, stage: str | None = None) -> None:
        assignment = Assignment(
            device=DEVICE,
            incarnation=1,
            model=release.model,
            generation=(1, n),
            release=release.digest,
            version=release.version,
            stage=stage,
        )
        document = SignedAssignments(
            device=DEVICE, incarnation=1, issued_at=int(time.time()), assignments=(assignment,)
        )
        signed = document.to_bytes(signer_of(self.fleet.repository.keys)(document.payload()))
        path = self.repository / "desired" / f"{DEVICE}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(signed)

    def reports(self) -> list[Report]:
        found = (self.repository / "reports" / DEVICE).glob("*.json")
        return sorted((Report.from_bytes(p.read_bytes(), self.key) for p in found), key=lambda r: r.sequence)

    def downloaded(self, n: int) -> str:
        """Return what moved to the device for an update, as it reported it, and what its files have."""
        report = next(r for r in self.reports() if r.generation == (1, n) and r.phase is Phase.VERIFIED)
        release = self.published[n]
        variant = next(v for v in release.variants if v.name == "openvino-cpu")
        entire = sum(blob.size for blob in release.blobs_for(variant))
        return (
            f"release {release.version}: {report.metrics['download_bytes']:.0f} bytes moved for files of "
            f"{entire} bytes, {report.metrics['files_by_delta']:.0f} of them by a delta"
        )

    def compared(self, n: int) -> str:
        metrics = next(r.metrics for r in self.reports() if r.generation == (1, n) and r.code == "compared")
        new, old = (metrics[name].quantile(0.5) for name in ("shadow_latency_ms", "shadow_reference_ms"))
        same, requests = metrics["shadow_agreement"], metrics["shadow_requests"]
        return (
            f"{same:.1%} the same answers in {requests:.0f} live requests, "
            f"p50 {new:.3f} ms where the old one took {old:.3f} ms"
        )


class Device:
    """A device: its folder, and the process of its agent."""

    def __init__(self, folder: Path, url: str, operator: Operator) -> None:
        self.folder = folder
        root, key = folder.with_suffix(".root.json"), folder.with_suffix(".key")
        root.write_bytes(operator.fleet.root)
        operator.key = hashlib.sha256(b"an example has no secrets").digest()
        key.write_text(operator.key.hex())
        self._who = ["--root", str(root)]
        self._run = [*self._who, "--source", url, "--device", DEVICE, "--key", str(key)]
        self._agent: subprocess.Popen[bytes] | None = None

    def _command(self, *arguments: str) -> list[str]:
        options = [part for name, value in OPTIONS.items() for part in ("--option", f"{name}={value}")]
        return [sys.executable, "-m", "edgeinfer", "agent", *arguments, *options]

    def start(self) -> None:
        log = (self.folder.with_suffix(".log")).open("ab")
        self._agent = subprocess.Popen(self._command("run", str(self.folder), *self._run), stderr=log)
        log.close()

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._agent is not None:
            self._agent.send_signal(number)
            self._agent.wait()
            self._agent = None

    def import_from(self, stick: Path) -> None:
        subprocess.run(
            self._command("import", str(self.folder), str(stick)), check=True, stdout=subprocess.DEVNULL
        )

    def wait_for(self, n: int, phase: Phase) -> None:
        from edgeinfer.fleet.device.journal import Journal

        end = time.monotonic() + 300
        while time.monotonic() < end:
            state = Journal(self.folder).load() if self.folder.exists() else None
            update = state.update if state is not None else None
            if update is not None and update.changes[0].generation == (1, n):
                if update.phase is phase:
                    return
                if update.phase.final:
                    raise SystemExit(f"{update.phase.value} {update.code}: {update.detail}")
            time.sleep(0.02)
        raise SystemExit(f"{phase.value} was not reached: {self.folder.with_suffix('.log').read_text()}")

    def loaded(self) -> str:
        status = AgentStatus.of(self.folder)
        pin = status.models["digits"]
        return f"generation {status.generation}: release {pin.version}, variant {pin.variant}"


class Client:
    """The application: asks without pause, in a thread."""

    def __init__(self, folder: Path) -> None:
        self._device = ei.fleet.connect(folder)
        self._model = self._device.model("digits", accepts="digits/1")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.batch = 1
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self.right = 0.0

    def _ask(self) -> None:
        rng = np.random.default_rng(0)
        while not self._stop.wait(0.002):
            chosen = rng.integers(0, len(DIGITS.images), self.batch)
            try:
                with self._model.request() as session:
                    version = session.version
                    logits = session.infer({"images": DIGITS.images[chosen]})["logits"]
                    session.observe(
                        confidence=float(np.exp(-np.ptp(logits[0]))), label=str(logits[0].argmax())
                    )
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            else:
                self.answered[version] += 1
                self.right += float((logits.argmax(1) == DIGITS.labels[chosen]).mean())

    def version(self) -> str:
        with self._model.request() as session:
            return f"release {session.version}"

    def limit_ms(self) -> float:
        """Return a limit between one image's latency and that of a batch, measured here and now."""
        with self._model.request() as session:
            one = [timed(session, 1) for _ in range(200)]
            many = [timed(session, 4_000) for _ in range(3)]
        return float(np.sqrt(max(one) * min(many))) if max(one) < min(many) else min(many) / 2

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._device.close()


def tuned() -> onnx.ModelProto:
    """Return the model with weights moved by 0.5 % of their size, as a little more training does."""
    model, rng = onnx.load(model_path()), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if len(tensor.dims) >= 2:
            weights = numpy_helper.to_array(tensor)
            moved = weights * (1 + 0.005 * rng.standard_normal(weights.shape))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(weights.dtype), tensor.name))
    return model


def timed(session: ei.fleet.PinnedModel, batch: int) -> float:
    started = time.perf_counter()
    session.session.infer({"images": DIGITS.images[np.arange(batch) % len(DIGITS.images)]})
    return (time.perf_counter() - started) * 1e3


def phases(reports: list[Report]) -> str:
    counted = Counter(report.phase.value for report in reports)
    return ", ".join(f"{count} {phase}" for phase, count in counted.most_common())


def say(title: str, text: str) -> None:
    print(f"{title}\n    {text}", flush=True)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a repository, and keep the reports that are posted."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            data = path.read_bytes() if path.is_file() else None
            etag = f'"{hashlib.sha256(data or b"").hexdigest()}"'
            if data is not None and self.headers.get("If-None-Match") == etag:
                self._answer(304, b"", etag)
            else:
                self._answer(404 if data is None else 200, data or b"", etag)

        def do_POST(self) -> None:
            reports = folder / self.path.lstrip("/")
            reports.mkdir(parents=True, exist_ok=True)
            for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines():
                (reports / f"{hashlib.sha256(line).hexdigest()}.json").write_bytes(line)
            self._answer(204, b"", "")

        def _answer(self, status: int, data: bytes, etag: str) -> None:
            self.send_response(status)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(data)))
            with contextlib.suppress(ConnectionError):  # of an agent that was killed meanwhile
                self.end_headers()
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
