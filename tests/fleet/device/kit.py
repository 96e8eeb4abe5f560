"""What the tests of a device share: small real models, a repository whose metadata is taken for signed.

The metadata's own signatures are tested with `trust`; here releases come from memory, so that a test can
run a device many hundred times. Assignments are signed and verified for real, files are downloaded for real.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import onnx.parser
from securesystemslib._vendor.ed25519 import ed25519
from securesystemslib.signer import SSlibKey

import edgeinfer as ei
from edgeinfer.budget import Budget
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.application import connect
from edgeinfer.fleet.device.assignment import Assignment, AssignmentKeys, Signature, SignedAssignments
from edgeinfer.fleet.device.floors import Floors
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.release import Blob, Predicate, Release, Variant
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.device.staging import ShadowRequest, StagingRequest, StagingResult
from edgeinfer.fleet.device.transport import FolderTransport, MemoryTransport
from edgeinfer.fleet.device.verdicts import Verdict
from edgeinfer.fleet.errors import TransportError, UnknownReleaseError

DEVICE = "camera-1"
NOW = 1_800_000_000
OPTIONS = AgentOptions(
    soak_s=0, poll_s=0.001, staging_runs=30, may_lack=("temperature_c", "power_w"), tick_s=0.01
)


@functools.lru_cache(maxsize=32)
def artifact_folder(factor: float = 1.0, backend: str = "onnxruntime") -> Path:
    """Return a saved artifact of y = factor * x, with golden values."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y)
        <float f = {{{factor}}}> {{ y = Mul(x, f) }}"""
    )
    folder = Path(tempfile.mkdtemp(prefix="edgeinfer-test-")) / "model.edge"
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    artifact = ei.compile(model, target=backend)
    artifact.with_golden({"x": x}, {"y": x * np.float32(factor)}, rtol=1e-6, atol=0).save(folder)
    return folder


@functools.lru_cache(maxsize=64)
def faulty_folder(factor: float = 1.0, fault: str = "", after: int = 0) -> Path:
    """Return a saved artifact of `faulty_backend`, with golden values of y = factor * x."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4] x) => (float[1, 4] y) { y = Identity(x) }"""
    )
    folder = Path(tempfile.mkdtemp(prefix="edgeinfer-test-")) / "model.edge"
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    options = {"factor": factor, "fault": fault, "after": after}
    artifact = ei.compile(model, target="faulty", options=options)
    artifact.with_golden({"x": x}, {"y": x * np.float32(factor)}, rtol=1e-6, atol=0).save(folder)
    return folder


class Client:
    """An application that asks without pause, in a thread of its own."""

    def __init__(self, folder: Path, model: str = "m", accepts: str = "m/1", **options) -> None:
        self.application = connect(folder, follow_s=0.02, **options)
        self.model = self.application.model(model, accepts)
        self.answered: Counter[str] = Counter()  # by version
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        x = np.arange(4, dtype=np.float32).reshape(1, 4)
        while not self._stop.wait(0.001):
            try:
                with self.model.request() as session:
                    version = session.version
                    answer = session.infer({"x": x})["y"]
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                continue
            self.answered[version] += 1
            if not any(np.array_equal(answer, x * factor) for factor in (1, 2)):
                self.failed.append(f"{version} answered {answer}")

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.application.close()


class Shelf:
    """A repository in a folder that is taken for signed. It is its own `Trust`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = [Release.from_bytes(path.read_bytes()) for path in folder.glob("releases/*.json")]
        self.releases: dict[str, Release] = {release.digest: release for release in found}
        self.withdrawn: frozenset[tuple[str, str]] = frozenset()
        # Signed in Python, so that no test of a device needs the package cryptography; tests are no secret.
        self._secret = b"edgeinfer tests".ljust(32, b".")
        self._public = ed25519.publickey_unsafe(self._secret)
        key = SSlibKey("00ff", "ed25519", "ed25519", {"public": self._public.hex()})
        self.assignment_keys = AssignmentKeys(keys={key.keyid: key}, threshold=1)
        self.floors = Floors()
        folder.mkdir(parents=True, exist_ok=True)

    def publish(
        self,
        model: str = "m",
        version: str = "1",
        artifact: Path | None = None,
        *,
        interface: str = "m/1",
        budget: Budget | None = None,
        requires: str | None = None,
        bundle: Mapping[str, bytes] | None = None,
        needs: Predicate | None = None,
    ) -> Release:
        artifact = artifact or artifact_folder()
        opened = ei.Artifact.open(artifact)
        blobs = [self._blob(path.name, path.read_bytes()) for path in sorted(artifact.iterdir())]
        variant = Variant(
            name="only",
            artifact_digest=opened.digest,
            blobs=blobs,
            budget=budget or Budget(),
            needs=needs or Predicate(backend=opened.manifest.backend),
        )
        release = Release(
            model=model,
            version=version,
            interface=interface,
            variants=(variant,),
            bundle=[self._blob(name, data) for name, data in (bundle or {"labels.txt": b"a\nb\n"}).items()],
            requires=requires,
            created_at=NOW - 1000,
        )
        self.releases[release.digest] = release
        (self.folder / "releases").mkdir(exist_ok=True)
        (self.folder / "releases" / f"{release.digest}.json").write_bytes(release.to_bytes())
        return release

    def desire(self, *wanted: Assignment, at: int = NOW) -> None:
        """Put a document of assignments where a folder's transport finds it."""
        (self.folder / "desired").mkdir(exist_ok=True)
        (self.folder / "desired" / f"{DEVICE}.json").write_bytes(self.document(*wanted, at=at))

    def _blob(self, path: str, data: bytes) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        place = self.folder / "blobs" / "sha256" / digest[:2] / digest
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return Blob(path=path, size=len(data), digest=digest)

    def refresh(self) -> None:
        """Nothing to bring."""

    def raise_floors(self, floors: Floors) -> None:
        self.floors = self.floors.raised(floors)

    def release(self, model: str, version: str, digest: str) -> Release:
        try:
            return self.releases[digest]
        except KeyError:
            raise UnknownReleaseError("There is no such release.", found=digest) from None

    def document(
        self, *wanted: Assignment, device: str = DEVICE, incarnation: int = 1, at: int = NOW
    ) -> bytes:
        document = SignedAssignments(device=device, incarnation=incarnation, issued_at=at, assignments=wanted)
        signature = ed25519.signature_unsafe(document.payload(), self._secret, self._public)
        return document.to_bytes((Signature(keyid="00ff", sig=signature.hex()),))


def assign(
    release: Release | None, n: int, *, model: str = "m", stage: str | None = None, start_before: int = 0
) -> Assignment:
    return Assignment(
        device=DEVICE,
        incarnation=1,
        model=release.model if release is not None else model,
        generation=(1, n),
        release=release.digest if release is not None else "",
        version=release.version if release is not None else "",
        start_before=start_before,
        stage=stage,
    )


class PassingChecker:
    """Says of every model what `verdicts` says. It stands for the child process where many runs count."""

    def __init__(self, verdicts: Mapping[str, Verdict] | None = None) -> None:
        self.verdicts = dict(verdicts or {})
        self.staged: list[str] = []

    def facts(self) -> dict[str, str]:
        return {"onnxruntime": "1.23", "openvino": "2025.4", "faulty": "1.0"}

    def stage(self, request: StagingRequest, alive) -> StagingResult:
        self.staged.append(request.model)
        return StagingResult(verdict=self.verdicts.get(request.model, Verdict.passed()))

    def shadow(self, request: ShadowRequest, alive) -> StagingResult:
        return StagingResult(verdict=Verdict.passed())


def make_agent(folder: Path, shelf: Shelf, transport: MemoryTransport | None = None, **changes) -> Agent:
    options = attrs.evolve(OPTIONS, **changes.pop("options", {}))
    given = {"checker": PassingChecker(), "clock": lambda: NOW + time.monotonic() % 1000, **changes}
    return Agent(
        folder,
        source=str(shelf.folder),
        device=DEVICE,
        trust=shelf,
        transport=transport or FolderTransport(shelf.folder, DEVICE),
        options=options,
        **given,
    )


def drive(agent: Agent, *, until: Phase | None = None, steps: int = 50) -> Phase:
    """Step until the update is over, or in a phase; a soak may wait for an application that is loading."""
    phase = agent.step()
    for _ in range(steps):
        if phase is until or (until is None and phase.final):
            return phase
        if phase is Phase.SOAKING:
            time.sleep(0.1)
        phase = agent.step()
    raise AssertionError(f"{phase} {agent.device.waiting} after {steps} steps: {agent.device.state.update}")


def running(folder: Path) -> dict[str, str]:
    """Return the version of each model that the pointer names, after every file of it was verified."""
    generations = Generations(folder)
    number = generations.current()
    return {name: pin.version for name, pin in generations.verify(number).models.items()} if number else {}


class FailingTransport:
    def __init__(self) -> None:
        self.inner = MemoryTransport()
        self.fails = True

    def desired(self, etag):
        return self.inner.desired(etag)

    def send(self, data):
        if self.fails:
            raise TransportError("No network.")
        return self.inner.send(data)

    def wait(self, seconds):
        return self.inner.wait(seconds)

    def close(self):
        pass


def installed(folder: Path, shelf: Shelf, **options) -> Agent:
    """Return an agent on whose device version 1 runs."""
    agent = make_agent(folder, shelf, **options)
    shelf.desire(assign(shelf.publish(), 1))
    assert drive(agent) is Phase.COMMITTED
    return agent


def second(shelf: Shelf, **options):
    return shelf.publish(version="2", artifact=artifact_folder(2.0), **options)


def reports(transport: MemoryTransport, agent: Agent) -> list[Report]:
    return [Report.from_bytes(data, agent.device.identity.key_bytes) for data in transport.reports]
