"""Publishing real artifacts, alone and at once, interrupted anywhere, and what devices see of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import uuid

import attrs
import numpy as np
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer import devices
from edgeinfer.artifact.artifact import Cost
from edgeinfer.artifact.golden import compare_golden
from edgeinfer.errors import GoldenMismatchError
from edgeinfer.feeds.preprocessing import Preprocessing
from edgeinfer.fleet.device.blobs import BlobStore
from edgeinfer.fleet.device.download import Downloader
from edgeinfer.fleet.device.golden import read_golden
from edgeinfer.fleet.device.locations import open_locations
from edgeinfer.fleet.device.predicate import DeviceFacts, Predicate
from edgeinfer.fleet.errors import (
    PublishError,
    ReleaseError,
    RepositoryError,
    TiedVariantsError,
)
from edgeinfer.fleet.operator.ceremonies import rotate, withdraw
from edgeinfer.fleet.operator.keys import KeyRing
from edgeinfer.fleet.operator.repository import Repository
from edgeinfer.fleet.operator.storage import FolderStorage, FsspecStorage, open_storage
from edgeinfer.fleet.operator.variants import needs_of
from tests.fleet.toy_fleet import ToyFleet

FEEDS = [{"x": np.array([[1, 2]], np.float32)}, {"x": np.array([[3, 4]], np.float32)}]


def install(toy: ToyFleet, release: ei.fleet.Release, facts: DeviceFacts):
    """What an agent does: trust, choose, download, place. Returns the folder and the variant."""
    read = toy.device().release(release.model, release.version, release.digest)
    variant = read.choose(facts)
    store = BlobStore(toy.folder / "store")
    Downloader(store, open_locations(toy.public)).fetch(read.blobs_for(variant), read.deltas)
    folder = toy.folder / "generations" / release.version
    for part, blobs in (("artifact", variant.blobs), ("bundle", read.bundle_for(variant))):
        for blob in blobs:
            store.place(blob.digest, folder / part / blob.path)
    return folder, variant


def test_from_publishing_to_answers_on_a_device(toy, fleet, model, artifact):
    other = ei.compile(model, "openvino:CPU")
    release = fleet.publish(
        "defects",
        [artifact, other],
        golden=FEEDS,
        interface="defects/2",
        budget=ei.Budget(latency_p99_ms=1000, disk_bytes="1 MB"),
        labels=["scratch", "dent", "good"],
        thresholds={"scratch": 0.4},
        preprocessing=Preprocessing(size=32),
    )
    assert (release.version, release.interface) == ("1", "defects/2")
    folder, variant = install(toy, release, DeviceFacts.of(devices.local()))
    assert variant.artifact_digest == other.digest  # OpenVINO is preferred where it is there
    assert variant.budget == ei.Budget(latency_p99_ms=1000, disk_bytes="1 MB")
    assert json.loads((folder / "bundle" / "labels.json").read_text()) == ["scratch", "dent", "good"]
    assert json.loads((folder / "bundle" / "thresholds.json").read_text()) == {"scratch": 0.4}
    shown = json.loads((folder / "bundle" / "preprocessing.json").read_text())
    assert Preprocessing.from_dict(shown) == Preprocessing(size=32)
    assert not (folder / "bundle" / "golden" / "onnxruntime-cpu.npz").exists()
    with ei.load(folder / "artifact") as session:
        goldens = read_golden(folder / "bundle" / str(variant.golden), session.signature)
        assert len(goldens) == len(FEEDS)
        for golden, feed in zip(goldens, FEEDS, strict=True):
            np.testing.assert_array_equal(golden.inputs["x"], feed["x"])
            compare_golden(golden, session.infer(golden.inputs))
            with pytest.raises(GoldenMismatchError):
                compare_golden(golden, {"y": session.infer(golden.inputs)["y"] * 1.5})


def test_only_what_fits_is_for_a_device(toy, fleet, artifact, model):
    release = fleet.publish(
        "m",
        {"small": artifact, "large": artifact},
        needs={"large": Predicate(backend="onnxruntime", memory_bytes=8), "small": Predicate()},
    )
    assert release.choose(DeviceFacts(backends={"onnxruntime": "1"}, memory_bytes=8)).name == "large"
    assert release.choose(DeviceFacts(memory_bytes=8)).name == "small"


def test_a_blob_is_for_its_own_version_of_the_runtime(fleet, artifact, model):
    blob = ei.compile(model, "openvino:CPU", options={"export": True})
    release = fleet.publish("m", [blob, ei.compile(model, "openvino:CPU"), artifact])
    needs = release.variants[0].needs
    version = ei.backends()["openvino"].capabilities().version
    assert (needs.backend, needs.runtime) == ("openvino", f"=={version}")
    assert needs.arch == blob.manifest.requires["machine"]
    arch = needs.arch[0]
    assert release.choose(DeviceFacts(arch=arch, backends={"openvino": version})).name == "openvino-cpu"
    assert release.choose(DeviceFacts(arch=arch, backends={"openvino": "1.0"})).name == "openvino-cpu-2"


@pytest.mark.parametrize(
    ("requires", "runtime"),
    [
        ({"tensorrt": ("10.*",), "compute_capability": ("8.6",)}, ">=10,<11"),
        ({"tensorrt": ("10.13.0",)}, "==10.13.0"),
        ({}, "==10.13.0"),
    ],
)
def test_an_engine_is_for_the_versions_that_it_says(artifact, requires, runtime):
    manifest = attrs.evolve(
        artifact.manifest, kind="device-bound", requires=requires, backend_version="tensorrt 10.13.0"
    )
    assert needs_of(attrs.evolve(artifact, manifest=manifest)).runtime == runtime


def test_ties_are_refused_unless_they_were_measured(fleet, artifact, model):
    other = ei.compile(model, "onnxruntime", options={"threads": 1})
    with pytest.raises(TiedVariantsError, match="equally well") as caught:
        fleet.publish("m", [artifact, other])
    assert "needs=" in str(caught.value)
    measured = [
        one.with_cost(Cost(latency_p50_ms=ms, measured_on="here"))
        for one, ms in ((artifact, 2.0), (other, 1.0))
    ]
    release = fleet.publish("m", measured)
    chosen = release.choose(DeviceFacts(backends={"onnxruntime": "1"}))
    assert chosen.artifact_digest == other.digest
    assert chosen.measured["latency_p50_ms"] == 1.0


def test_a_variant_that_breaks_the_budget_is_refused(fleet, artifact):
    with pytest.raises(PublishError, match="breaks the budget"):
        fleet.publish("m", artifact, budget=ei.Budget(disk_bytes=10))
    slow = artifact.with_cost(Cost(latency_p99_ms=20, measured_on="here"))
    with pytest.raises(PublishError, match="breaks the budget"):
        fleet.publish("m", slow, budget=ei.Budget(latency_p99_ms=10))
    assert fleet.releases("m") == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "../m"},
        {"version": "a/b"},
        {"artifacts": []},
        {"artifacts": {"a b": None}},
        {"needs": {"other": Predicate()}},
        {"golden": []},
    ],
)
def test_what_cannot_be_published_is_refused(fleet, artifact, arguments):
    given = {"model": "m", "artifacts": artifact, **arguments}
    if given["artifacts"] == {"a b": None}:
        given["artifacts"] = {"a b": artifact}
    model = given.pop("model")
    with pytest.raises(ei.EdgeInferError):
        fleet.publish(model, given.pop("artifacts"), **given)
    assert not fleet.repository.state().releases


def test_versions_are_never_changed(fleet, artifact, toy):
    first = fleet.publish("m", artifact, interface="m/3")
    toy.now += 1
    second = fleet.publish("m", artifact)
    assert [first.version, second.version] == ["1", "2"]
    assert second.interface == "m/3"
    with pytest.raises(PublishError, match="published already"):
        fleet.publish("m", artifact, version="2")
    assert [release.digest for release in fleet.releases("m")] == [first.digest, second.digest]


def test_files_that_are_there_are_stored_once(fleet, artifact, toy):
    fleet.publish("m", artifact)
    before = sorted(path.name for path in (toy.public / "blobs").rglob("*") if path.is_file())
    fleet.publish("m", artifact)
    fleet.publish("n", artifact)
    assert sorted(path.name for path in (toy.public / "blobs").rglob("*") if path.is_file()) == before


def test_a_later_version_comes_as_a_delta(fleet, toy):
    rng = np.random.default_rng(0)
    weights = rng.integers(-128, 127, 40_000).astype(np.int8)
    made = []
    for step in range(2):
        net = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> net (float[2] x) => (int8[200, 200] y, float[2] z) '
            "{ y = Identity(w) z = Identity(x) }"
        )
        net.graph.initializer.append(onnx.numpy_helper.from_array(weights.reshape(200, 200), "w"))
        made.append(ei.compile(net, "onnxruntime"))
        weights[step::100] += 1
    fleet.publish("m", made[0])
    release = fleet.publish("m", made[1])
    facts = DeviceFacts(backends={"onnxruntime": "1"})
    assert release.deltas
    install(toy, fleet.releases("m")[0], facts)
    store = BlobStore(toy.folder / "store")
    fetched = Downloader(store, open_locations(toy.public)).fetch(
        release.blobs_for(release.choose(facts)), release.deltas
    )
    assert fetched.by_delta
    assert fetched.moved_bytes < release.choose(facts).size / 4


def test_golden_files_that_are_damaged_are_refused(tmp_path, artifact):
    for data in (b"", b"PK", np.random.default_rng(0).bytes(1000)):
        (tmp_path / "golden.npz").write_bytes(data)
        with pytest.raises(ReleaseError, match="golden"):
            read_golden(tmp_path / "golden.npz", artifact.signature)


# -- several at once, and interrupted ----------------------------------------------------------------------


class Interrupted(BaseException):
    """The process was killed."""


class FailingStorage:
    """A storage that is killed at its n-th write, before or after it."""

    def __init__(self, inner, at: int, *, after: bool) -> None:
        self.inner, self.at, self.after = inner, at, after
        self.url = inner.url

    def __getattr__(self, name):
        method = getattr(self.inner, name)
        if name not in ("create", "replace", "remove"):
            return method

        def write(*arguments):
            self.at -= 1
            if self.at == 0 and not self.after:
                raise Interrupted
            result = method(*arguments)
            if self.at == 0:
                raise Interrupted
            return result

        return write


def with_storage(toy: ToyFleet, storage) -> Repository:
    return Repository(storage, KeyRing(toy.folder / "keys", lambda _: None), clock=lambda: toy.now)


@pytest.mark.parametrize("what", ["publish", "withdraw", "rotate root", "rotate targets", "rotate releases"])
@pytest.mark.parametrize("after", [False, True])
def test_interrupted_anywhere_devices_and_publishers_go_on(tmp_path, what, after):
    for at in itertools.count(1):
        toy = ToyFleet(tmp_path / f"{at}")
        first = toy.publish("m", "1")
        toy.device().release("m", "1", first.digest)
        role = what.partition(" ")[2]
        key = toy.keys.generate(role, encrypt=False) if role else None
        broken = with_storage(toy, FailingStorage(toy.repository.storage, at, after=after))
        try:
            if what == "publish":
                toy.repository = broken
                toy.publish("m", "2")
            elif what == "withdraw":
                withdraw(broken, "0" * 64)
            else:
                rotate(broken, role, add=[key])
            killed = False
        except Interrupted:
            killed = True
        toy.repository = with_storage(toy, FolderStorage(toy.public))
        if not killed or not role:  # half a rotation is finished by the next who signs; before, devices wait
            assert toy.device().release("m", "1", first.digest) == first
        toy.repository.sign()
        assert toy.device().release("m", "1", first.digest) == first
        third = toy.publish("m", "3")
        assert toy.device().release("m", "3", third.digest) == third
        if not killed:
            assert at > 3
            break


class ExclusiveStorage:
    """fsspec's store in memory, whose creation is exclusive as S3's is; in fsspec it is two steps."""

    def __init__(self, url: str) -> None:
        self.inner, self.mutex = FsspecStorage(url), threading.Lock()

    def create(self, path, content):
        with self.mutex:
            self.inner.create(path, content)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_publishers_at_once_lose_nothing(tmp_path, kind):
    place = f"memory://{uuid.uuid4()}"
    storage = FolderStorage(tmp_path / "repository") if kind == "folder" else ExclusiveStorage(place)
    toy = ToyFleet(tmp_path, storage=storage)
    errors = []

    def work(number: int) -> None:
        mine = ToyFleet(tmp_path, storage=storage)
        try:
            for index in range(3):
                mine.publish(f"m{number % 2}", f"{number}.{index}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    device = toy.device(source=place if kind == "object store" else toy.public)
    found = {f"m{m}/{version}" for m in range(2) for version in device.versions(f"m{m}")}
    assert found == {f"m{n % 2}/{n}.{i}" for n in range(4) for i in range(3)}
    pointed = json.loads(storage.read("metadata/timestamp.json"))["signed"]["version"]
    assert pointed == toy.repository.state().versions["timestamp"]


class OvertakenStorage:
    """Without locks, as an object store; another publisher is faster, just before the snapshot is created."""

    def __init__(self, inner, overtake) -> None:
        self.inner, self.overtake = inner, overtake
        self.url = inner.url
        self.lock = contextlib.nullcontext

    def create(self, path, content):
        if path.endswith("snapshot.json") and self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            overtake()
        self.inner.create(path, content)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_url_of_a_folder_is_a_folder(tmp_path):
    storage = open_storage((tmp_path / "a b").as_uri())
    storage.create("x", b"1")
    assert (tmp_path / "a b" / "x").read_bytes() == b"1"
    with pytest.raises(FileExistsError):
        storage.create("x", b"2")
    assert open_storage("memory://x").url == "memory://x"
    with pytest.raises(RepositoryError, match="not known"):
        open_storage("nonsense://x")


def test_who_is_overtaken_builds_on_the_other(toy):
    other = ToyFleet(toy.folder)
    theirs = []
    storage = OvertakenStorage(FolderStorage(toy.public), lambda: theirs.append(other.publish("m", "1")))
    toy.repository = with_storage(toy, storage)
    ours = toy.publish("m", "2")
    assert toy.device().versions("m") == {"1": theirs[0].digest, "2": ours.digest}
