"""TUF attacks against our client, over a real HTTP server. Names as in the TUF specification, 1.5.2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, MetaFile, Role, TargetFile

from edgeinfer.fleet.device.floors import Floors, read_floors
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.errors import (
    BadSignatureError,
    ExpiredMetadataError,
    MissingFileError,
    RollbackError,
    TooLargeError,
    TrustError,
    UnknownReleaseError,
    WithdrawnReleaseError,
)
from edgeinfer.fleet.operator.ceremonies import rotate, withdraw
from edgeinfer.fleet.operator.draft import expires, serialized
from tests.fleet.http_server import FolderServer, serving
from tests.fleet.toy_fleet import DAY, ToyFleet


@pytest.fixture
def fleet(tmp_path):
    return ToyFleet(tmp_path)


@pytest.fixture
def server(fleet):
    with serving(fleet.public) as found:
        yield found


def copy_of(server: FolderServer) -> dict[str, bytes]:
    """What the server has now, to be served again later."""
    files = (path for path in server.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(server.folder)): path.read_bytes() for path in files}


def resigned(fleet: ToyFleet, path: Path, change, roles=()) -> bytes:
    """Metadata that was changed by someone who has the keys of some roles."""
    metadata = Metadata.from_bytes(path.read_bytes())
    change(metadata.signed)
    metadata.signatures.clear()
    for role in roles:
        for signer in fleet.keys.signers(fleet.keys.public(role)):
            metadata.sign(signer, append=True)
    return serialized(metadata)


def test_a_device_gets_what_was_published(fleet, server):
    release = fleet.publish("m", "1")
    device = fleet.device(source=server.url)
    device.refresh()
    assert device.release("m", "1", release.digest) == release
    assert device.versions("m") == {"1": release.digest}
    assert device.withdrawn == frozenset()
    assert set(device.assignment_keys.keys) == set(fleet.keys.public("assignments"))


def test_a_release_is_read_once_and_kept(fleet, server):
    release = fleet.publish("m", "1")
    device = fleet.device(source=server.url)
    device.release("m", "1", release.digest)
    shutil.rmtree(fleet.public / "targets")
    assert device.release("m", "1", release.digest) == release
    kept = fleet.folder / "device" / "releases" / f"{release.digest}.json"
    kept.write_bytes(kept.read_bytes() + b" ")
    with pytest.raises(MissingFileError):
        device.release("m", "1", release.digest)


def test_an_unknown_release_is_refused(fleet, server):
    release = fleet.publish("m", "1")
    device = fleet.device(source=server.url)
    for model, version, digest in (
        ("m", "2", release.digest),
        ("n", "1", release.digest),
        ("m", "1", "0" * 64),
    ):
        with pytest.raises(UnknownReleaseError, match="no such release"):
            device.release(model, version, digest)


def test_one_models_keys_cannot_sign_for_another(fleet, server):
    """The delegation of a model is for its own paths only."""
    fleet.publish("m", "1")
    foreign = fleet.release_of("n", "1", {"x": b"evil"})

    def change(draft):
        path = "models/n/1/release.json"
        info = TargetFile(len(foreign.to_bytes()), {"sha256": foreign.digest}, path)
        draft.edit_releases("m").targets[path] = info

    assert fleet.repository.update(change) == {}
    with pytest.raises(UnknownReleaseError):
        fleet.device(source=server.url).release("n", "1", foreign.digest)


# -- arbitrary software, wrong hash ------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "models-m"])
def test_metadata_that_was_changed_is_refused(fleet, server, role):
    release = fleet.publish("m", "1")
    name = "timestamp.json" if role == "timestamp" else fleet.path(role).name
    data = json.loads((fleet.public / "metadata" / name).read_bytes())
    data["signed"]["evil"] = True
    server.replaced[f"metadata/{name}"] = json.dumps(data).encode()
    with pytest.raises(TrustError):
        fleet.device(source=server.url).release("m", "1", release.digest)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_that_another_key_signed_is_refused(fleet, server, role):
    fleet.publish("m", "1")
    name = "timestamp.json" if role == "timestamp" else fleet.path(role).name
    path = fleet.public / "metadata" / name
    server.replaced[f"metadata/{name}"] = resigned(fleet, path, lambda _: None, ["assignments", "releases"])
    with pytest.raises(TrustError):
        fleet.device(source=server.url).refresh()


def test_a_timestamp_without_a_good_signature_says_so(fleet, server):
    path = fleet.public / "metadata" / "timestamp.json"
    server.replaced["metadata/timestamp.json"] = resigned(fleet, path, lambda _: None, ["assignments"])
    with pytest.raises(BadSignatureError, match="not signed"):
        fleet.device(source=server.url).refresh()


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1] + b" ", lambda d: d + b" ", lambda d: d[:40], lambda d: b""]
)
def test_a_release_of_the_wrong_bytes_is_refused(fleet, server, change):
    release = fleet.publish("m", "1")
    path = f"targets/models/m/1/{release.digest}.release.json"
    server.replaced[path] = change(release.to_bytes())
    with pytest.raises((TrustError, TooLargeError)):
        fleet.device(source=server.url).release("m", "1", release.digest)


# -- endless data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["2.root", "timestamp", "snapshot", "targets", "models-m"])
def test_endless_metadata_is_cut_off(fleet, server, role):
    release = fleet.publish("m", "1")
    name = f"{role}.json" if role in ("2.root", "timestamp") else fleet.path(role).name
    server.endless.add(f"metadata/{name}")
    with pytest.raises(TrustError):
        fleet.device(source=server.url).release("m", "1", release.digest)
    assert server.sent < 8 << 20


def test_an_endless_release_is_cut_off(fleet, server):
    release = fleet.publish("m", "1")
    server.endless.add(f"targets/models/m/1/{release.digest}.release.json")
    with pytest.raises(TooLargeError, match="larger than it may be"):
        fleet.device(source=server.url).release("m", "1", release.digest)
    assert server.sent < 8 << 20


# -- rollback ----------------------------------------------------------------------------------------------


def test_all_of_an_older_repository_is_refused(fleet, server):
    fleet.publish("m", "1")
    old = copy_of(server)
    fleet.publish("m", "2")
    fleet.device(source=server.url).refresh()
    server.replaced.update(old)
    with pytest.raises(RollbackError):
        fleet.device(source=server.url).refresh()


@pytest.mark.parametrize("lost", ["timestamp.json", "snapshot.json", "all"])
def test_an_older_repository_is_refused_also_with_a_damaged_cache(fleet, server, lost):
    """python-tuf fetches again what it cannot read, and has then forgotten the versions."""
    fleet.publish("m", "1")
    old = copy_of(server)
    fleet.publish("m", "2")
    fleet.device(source=server.url).refresh()
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        if lost in (name, "all"):
            (fleet.folder / "device" / name).write_bytes(b"")
    server.replaced.update(old)
    with pytest.raises(RollbackError, match=r"older metadata|wrong version"):
        fleet.device(source=server.url).refresh()


def test_floors_that_were_kept_elsewhere_count(fleet, server):
    fleet.publish("m", "1")
    device = fleet.device(source=server.url)
    device.raise_floors(Floors(versions={"timestamp": 99}))
    with pytest.raises(RollbackError):
        device.refresh()


def test_damaged_floors_are_told(fleet):
    fleet.device().refresh()
    (fleet.folder / "device" / "floors.json").write_bytes(b"{")
    assert fleet.device().floors.lost
    assert not read_floors(fleet.folder / "nowhere").lost


def test_a_snapshot_that_forgets_a_role_is_refused(fleet, server):
    fleet.publish("m", "1")
    fleet.device(source=server.url).refresh()
    path, state = fleet.path("snapshot"), fleet.repository.state()
    number = state.versions["snapshot"] + 1

    def forget(signed):
        del signed.meta["models-m.json"]
        signed.version = number

    (path.parent / f"{number}.snapshot.json").write_bytes(resigned(fleet, path, forget, ["snapshot"]))
    fleet.repository.stamp()
    with pytest.raises(TrustError):
        fleet.device(source=server.url).refresh()


# -- freeze ------------------------------------------------------------------------------------------------


def test_what_is_held_back_ends_with_its_expiry(fleet, server):
    device = fleet.device(source=server.url)
    device.refresh()
    old = copy_of(server)
    fleet.publish("m", "1")
    server.replaced.update(old)
    fleet.device(source=server.url).refresh()  # nothing new is known
    fleet.now += 15 * DAY
    with pytest.raises(ExpiredMetadataError, match="expired"):
        fleet.device(source=server.url).refresh()
    server.replaced.clear()
    fleet.repository.sign()
    fleet.device(source=server.url).refresh()


@pytest.mark.parametrize(
    ("role", "days"), [("snapshot", 91), ("targets", 366), ("models-m", 366), ("root", 731)]
)
def test_each_role_expires(fleet, server, role, days):
    release = fleet.publish("m", "1")
    fleet.now += days * DAY
    path = fleet.path("timestamp")
    if role != "snapshot":
        fresh = expires(fleet.now + DAY)
        snapshot = fleet.path("snapshot")
        snapshot.write_bytes(resigned(fleet, snapshot, lambda s: setattr(s, "expires", fresh), ["snapshot"]))
    fleet.repository.stamp()
    assert path != fleet.path("timestamp")
    with pytest.raises(ExpiredMetadataError):
        fleet.device(source=server.url).release("m", "1", release.digest)


def test_a_clock_in_1970_believes_no_expired_metadata(fleet, server):
    fleet.publish("m", "1")
    device = fleet.device(source=server.url)
    device.refresh()
    old = copy_of(server)
    fleet.now += 20 * DAY
    fleet.repository.sign()
    fleet.device(source=server.url).refresh()
    server.replaced.update(old)
    fresh = TrustedRepository(fleet.folder / "device", server.url, root=fleet.root, clock=lambda: 0)
    assert fresh.now() == fleet.now
    with pytest.raises(TrustError):
        fresh.refresh()


def test_a_clock_far_ahead_blocks_what_is_new_and_harms_nothing(fleet, server):
    release = fleet.publish("m", "1")
    for ahead in (1e10, 1e18):
        with pytest.raises(ExpiredMetadataError):
            fleet.device(source=server.url, clock=lambda ahead=ahead: ahead).refresh()
    assert fleet.device(source=server.url).release("m", "1", release.digest) == release


# -- mix and match -----------------------------------------------------------------------------------------


def test_roles_of_different_times_are_refused(fleet, server):
    fleet.publish("m", "1")
    old = fleet.path("models-m").read_bytes()
    release = fleet.publish("m", "2")
    server.replaced[f"metadata/{fleet.path('models-m').name}"] = old
    with pytest.raises(TrustError):
        fleet.device(source=server.url).release("m", "2", release.digest)
    server.replaced[f"metadata/{fleet.path('snapshot').name}"] = (
        fleet.public / "metadata" / "1.snapshot.json"
    ).read_bytes()
    with pytest.raises(TrustError):
        fleet.device("other", source=server.url).refresh()


# -- thresholds and rotation -------------------------------------------------------------------------------


def test_below_the_threshold_nothing_is_believed(tmp_path):
    fleet = ToyFleet(tmp_path, counts={"targets": 3, "releases": 2}, thresholds={"targets": 2, "releases": 2})
    release = fleet.publish("m", "1")
    fleet.device().release("m", "1", release.digest)
    path, snapshot = fleet.path("models-m"), fleet.path("snapshot")
    metadata = Metadata.from_bytes(path.read_bytes())
    metadata.signatures.popitem()
    data = serialized(metadata)
    path.write_bytes(data)

    def name(signed):  # whoever has the online keys names the changed file, too
        signed.meta["models-m.json"] = MetaFile.from_data(metadata.signed.version, data, ["sha256"])

    snapshot.write_bytes(resigned(fleet, snapshot, name, ["snapshot"]))
    fleet.repository.stamp()
    with pytest.raises(BadSignatureError):
        fleet.device("other").release("m", "1", release.digest)


@pytest.mark.parametrize("role", ["root", "targets", "releases", "snapshot", "timestamp", "assignments"])
def test_keys_are_rotated(fleet, server, role):
    release = fleet.publish("m", "1")
    device = fleet.device(source=server.url)
    device.refresh()
    old = list(fleet.keys.public(role))
    new = fleet.keys.generate(role, encrypt=False)
    assert rotate(fleet.repository, role, add=[new], remove=old) == {}
    later = fleet.publish("m", "2")
    for name in ("device", "fresh"):
        found = fleet.device(name, source=server.url)
        assert found.release("m", "2", later.digest) == later
        assert found.release("m", "1", release.digest) == release
    if role == "assignments":
        assert set(fleet.device(source=server.url).assignment_keys.keys) == {new.keyid}


def test_a_root_that_the_old_root_did_not_sign_is_refused(fleet, server):
    fleet.device(source=server.url).refresh()
    path = fleet.public / "metadata" / "1.root.json"

    def usurp(signed):
        signed.version = 2
        signed.roles["root"] = Role(list(fleet.keys.public("releases")), 1)
        signed.keys.update(fleet.keys.public("releases"))

    server.replaced["metadata/2.root.json"] = resigned(fleet, path, usurp, ["releases"])
    with pytest.raises(TrustError):
        fleet.device(source=server.url).refresh()


def test_a_stolen_online_key_is_outlived_by_rotation(fleet, server):
    """It may have signed a version that nobody can surpass (TUF specification, 5.3.11)."""
    fleet.publish("m", "1")
    path = fleet.public / "metadata" / "timestamp.json"

    def race(signed):
        signed.version = 1_000_000
        signed.unrecognized_fields["edgeinfer-issued-at"] = int(fleet.now + 300 * DAY)

    server.replaced["metadata/timestamp.json"] = resigned(fleet, path, race, ["timestamp"])
    device = fleet.device(source=server.url)
    device.refresh()
    assert device.floors.versions["timestamp"] == 1_000_000
    server.replaced.clear()
    with pytest.raises(RollbackError):
        fleet.device(source=server.url).refresh()
    stolen = list(fleet.keys.public("timestamp"))
    new = fleet.keys.generate("timestamp", encrypt=False)
    rotate(fleet.repository, "timestamp", add=[new], remove=stolen)
    recovered = fleet.device(source=server.url)
    recovered.refresh()
    assert recovered.floors.versions["timestamp"] < 1_000_000
    assert recovered.now() == fleet.now


# -- withdrawn ---------------------------------------------------------------------------------------------


def test_a_withdrawn_release_is_refused_and_may_come_back(fleet, server):
    release = fleet.publish("m", "1")
    withdraw(fleet.repository, release.digest, device_class="rpi4")
    device = fleet.device(source=server.url)
    assert device.release("m", "1", release.digest) == release
    assert device.withdrawn == {(release.digest, "rpi4")}
    withdraw(fleet.repository, release.digest)
    with pytest.raises(WithdrawnReleaseError):
        fleet.device(source=server.url).release("m", "1", release.digest)
    withdraw(fleet.repository, release.digest, undo=True)
    assert fleet.device(source=server.url).release("m", "1", release.digest) == release
