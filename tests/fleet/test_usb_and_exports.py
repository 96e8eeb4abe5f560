"""Sticks for devices without a network, exports for the tools of others, and the command line."""

from __future__ import annotations

import json
import time

import numpy as np
import onnx.parser
import onnxruntime
import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.fleet.device.assignment import Assignment, Signature, SignedAssignments, verify_assignments
from edgeinfer.fleet.device.blobs import BlobStore, blob_path
from edgeinfer.fleet.device.documents import sha256
from edgeinfer.fleet.device.download import Downloader
from edgeinfer.fleet.device.locations import open_locations, read_bytes
from edgeinfer.fleet.errors import ExpiredMetadataError, RepositoryError, RollbackError, WithdrawnReleaseError
from edgeinfer.fleet.operator.ceremonies import withdraw
from edgeinfer.fleet.operator.exports import export_model_package, export_oci
from edgeinfer.fleet.operator.usb import export_usb
from edgeinfer.fleet.operator.verify import verify
from tests.fleet.toy_fleet import DAY

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }"""


# -- USB ---------------------------------------------------------------------------------------------------


def test_a_device_goes_from_the_network_to_the_stick_and_back(toy, tmp_path):
    toy.publish("m", "1")
    toy.device().refresh()
    second = toy.publish("m", "2")
    bundle = export_usb(toy.repository, tmp_path / "stick", days=30)
    assert bundle.releases == (second,)
    toy.now += 20 * DAY  # the network's timestamp has expired by now, the stick's has not
    with pytest.raises(ExpiredMetadataError):
        toy.device().refresh()
    device = toy.device(source=tmp_path / "stick")
    assert device.release("m", "2", second.digest) == second
    store = BlobStore(tmp_path / "store")
    blobs = second.variants[0].blobs
    assert Downloader(store, open_locations(tmp_path / "stick")).fetch(blobs).whole == (blobs[0].digest,)
    toy.repository.sign()
    third = toy.publish("m", "3")
    assert toy.device().release("m", "3", third.digest) == third
    with pytest.raises(RollbackError):
        toy.device(source=tmp_path / "stick").refresh()


def test_a_stick_ends_with_its_own_expiry(toy, tmp_path):
    toy.publish("m", "1")
    bundle = export_usb(toy.repository, tmp_path / "stick", days=30)
    assert bundle.expires_at == toy.now + 30 * DAY
    toy.now += 31 * DAY
    with pytest.raises(ExpiredMetadataError):
        toy.device(source=tmp_path / "stick").refresh()


def test_a_stick_beyond_the_expiry_of_offline_metadata_is_not_made(toy, tmp_path):
    toy.publish("m", "1")
    with pytest.raises(RepositoryError, match="expires before"):
        export_usb(toy.repository, tmp_path / "stick", days=400)


def test_a_stick_is_brought_up_to_date(toy, tmp_path):
    toy.publish("m", "1")
    export_usb(toy.repository, tmp_path / "stick")
    second = toy.publish("m", "2")
    export_usb(toy.repository, tmp_path / "stick")
    assert toy.device(source=tmp_path / "stick").release("m", "2", second.digest) == second


def test_a_withdrawn_release_is_refused_from_a_stick_too(toy, tmp_path):
    release = toy.publish("m", "1")
    withdraw(toy.repository, release.digest)
    export_usb(toy.repository, tmp_path / "stick")
    with pytest.raises(WithdrawnReleaseError):
        toy.device(source=tmp_path / "stick").release("m", "1", release.digest)


def test_assignments_and_what_they_name_are_on_the_stick(toy, tmp_path):
    first = toy.publish("m", "1")
    toy.publish("m", "2")
    (signer,) = toy.keys.signers(toy.keys.public("assignments"))
    assignment = Assignment(
        device="d", incarnation=1, model="m", generation=(1, 1), release=first.digest, version="1"
    )
    document = SignedAssignments(device="d", incarnation=1, issued_at=1, assignments=[assignment])
    signature = signer.sign(document.payload())
    data = document.to_bytes((Signature(keyid=signature.keyid, sig=signature.signature),))
    toy.put("desired/d.json", data)
    bundle = export_usb(toy.repository, tmp_path / "stick")
    assert [release.version for release in bundle.releases] == ["1", "2"]
    assert bundle.devices == ("d",)
    device = toy.device(source=tmp_path / "stick")
    found = read_bytes(open_locations(tmp_path / "stick")[0], "desired/d.json", max_bytes=10_000)
    read = verify_assignments(
        found, device.assignment_keys, device="d", incarnation=1, floors={}, now=toy.now
    )
    assert read.assignments == (assignment,)


def test_only_what_was_asked_for(toy, tmp_path):
    toy.publish("m", "1")
    toy.publish("m", "2")
    bundle = export_usb(toy.repository, tmp_path / "stick", releases=[("m", "1")])
    assert [release.version for release in bundle.releases] == ["1"]
    with pytest.raises(RepositoryError, match="no such release"):
        export_usb(toy.repository, tmp_path / "stick", releases=[("m", "9")])


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_damaged_repository_is_not_copied(toy, tmp_path, fault):
    release = toy.publish("m", "1")
    file = toy.public / "blobs" / blob_path(release.variants[0].blobs[0].digest)
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(b"x")
    with pytest.raises(RepositoryError):
        export_usb(toy.repository, tmp_path / "stick")
    assert not (tmp_path / "stick" / "metadata" / "timestamp.json").exists()
    found = verify(toy.public, toy.root, clock=lambda: toy.now)
    assert len(found.problems) == 1
    assert not verify(toy.public, toy.root, clock=lambda: toy.now + 1).table().footer.endswith("are right")


# -- exports -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifacts():
    model = ei.Model.load(onnx.parser.parse_model(NET))
    return [ei.compile(model, "onnxruntime"), ei.compile(model, "openvino:CPU")]


@pytest.fixture
def fleet(tmp_path):
    return ei.fleet.open(tmp_path / "fleet", passphrase=lambda _: "secret")


def test_onnx_runtime_reads_the_model_package(fleet, artifacts, tmp_path):
    release = fleet.publish("defects", artifacts)
    folder = tmp_path / "package"
    assert export_model_package(fleet.repository.storage, release, folder) == ("onnxruntime-cpu",)
    info = onnxruntime.ModelPackage.open(str(folder)).get_info()
    assert (info["package_name"], info["package_version"]) == ("defects", "1")
    context = onnxruntime.ModelPackageContext(str(folder))
    component = context.select_component(
        "defects", onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())
    )
    session = component.create_session()
    (y,) = session.run(None, {"x": np.array([[1, 2]], np.float32)})
    np.testing.assert_array_equal(y, [[9, 12, 15]])


def test_a_package_without_variants_for_it_is_refused(fleet, artifacts, tmp_path):
    release = fleet.publish("defects", artifacts[1])
    with pytest.raises(RepositoryError, match="no variant"):
        export_model_package(fleet.repository.storage, release, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_the_oci_layout_holds_together(fleet, artifacts, tmp_path):
    """As image-spec 1.1 says: every descriptor's blob is there, with its size and digest."""
    release = fleet.publish("defects", artifacts, golden=[{"x": np.ones((1, 2), np.float32)}])
    digest = export_oci(fleet.repository.storage, release, tmp_path / "image")
    assert json.loads((tmp_path / "image" / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}

    def follow(descriptor):
        algorithm, _, value = descriptor["digest"].partition(":")
        data = (tmp_path / "image" / "blobs" / algorithm / value).read_bytes()
        assert (sha256(data), len(data)) == (value, descriptor["size"])
        return data

    index = json.loads((tmp_path / "image" / "index.json").read_text())
    (named,) = index["manifests"]
    assert named["digest"] == digest
    assert named["annotations"]["org.opencontainers.image.ref.name"] == "1"
    manifests = [json.loads(follow(entry)) for entry in json.loads(follow(named))["manifests"]]
    assert len(manifests) == 2
    for manifest, variant in zip(manifests, release.variants, strict=True):
        assert follow(manifest["config"]) == release.to_bytes()
        titles = {}
        for layer in manifest["layers"]:
            titles[layer["annotations"]["org.opencontainers.image.title"]] = follow(layer)
        assert set(titles) == {f"artifact/{blob.path}" for blob in variant.blobs} | {
            f"bundle/golden/{variant.name}.npz"
        }
    with pytest.raises(RepositoryError, match="something at that path"):
        export_oci(fleet.repository.storage, release, tmp_path / "image")


# -- the command line --------------------------------------------------------------------------------------


def run(capsys, *arguments) -> str:
    assert main(["fleet", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_line(artifacts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEINFER_FLEET_PASSPHRASE", "secret")
    artifacts[0].save("model.edge")
    np.save("golden.npy", np.ones((1, 2), np.float32))
    assert "root of trust" in run(capsys, "init", "fleet", "--number", "root=2", "--threshold", "root=2")
    published = run(capsys, "publish", "fleet", "m", "model.edge", "--golden", "golden.npy", "--json")
    digest = json.loads(published)["digest"]
    assert "published m 2" in run(capsys, "publish", "fleet", "m", "model.edge", "--interface", "m/2")
    for role in ("root", "timestamp", "releases"):
        assert "signed and published" in run(capsys, "rotate", "fleet", role)
    assert "signed and published" in run(capsys, "rotate", "fleet", "targets", "--resign")
    assert "signed and published" in run(capsys, "withdraw", "fleet", digest, "--class", "old")
    assert "signed and published" in run(capsys, "sign", "fleet")
    assert "replaced" in run(capsys, "keys", "fleet")
    assert "m 2" in run(capsys, "export-usb", "fleet", "stick", "--days", "10")
    verified = json.loads(run(capsys, "verify", "fleet", "--json"))
    assert verified["problems"] == []
    assert verified["withdrawn"] == [[digest, "old"]]
    assert "are right" in run(capsys, "verify", "stick", "--partial", "--root", "fleet/keys/root.json")
    run(capsys, "export", "fleet", "m@1", "image")
    run(capsys, "export", "fleet", "m@1", "package", "--format", "model-package")


def test_the_command_line_says_what_is_wrong(artifacts, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEINFER_FLEET_PASSPHRASE", raising=False)
    for arguments, words in (
        (("init", "fleet"), "no passphrase"),
        (("publish", "nowhere", "m", "model.edge"), "no such artifact"),
        (("sign", "nowhere"), "key ring has no root"),
        (("verify", "nowhere"), "no root of trust"),
        (("init", "http://somewhere", "--keys", "keys"), "not written over HTTP"),
    ):
        assert main(["fleet", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("named", ["m@1", "digest", "start"])
def test_a_release_is_withdrawn_as_a_person_names_it(toy, capsys, named):
    digest = toy.publish("m", "1").digest
    toy.publish("m", "2")
    text = {"digest": digest, "start": digest[:12]}.get(named, named)
    assert main(["fleet", "withdraw", str(toy.folder), text]) == 0, capsys.readouterr().err
    assert f"{digest} is withdrawn from all devices" in capsys.readouterr().out
    toy.now = time.time()  # by which the command signed
    device = toy.device()
    device.refresh()
    assert device.withdrawn == {(digest, "*")}


@pytest.mark.parametrize("text", ["m@3", "n@1", "abc", "", "0" * 12])
def test_what_names_no_release_is_not_withdrawn(toy, capsys, text):
    toy.publish("m", "1")
    assert main(["fleet", "withdraw", str(toy.folder), text]) == 2
    assert "published are m@1" in capsys.readouterr().err


def test_an_import_from_a_folder_without_a_repository_is_refused(toy, tmp_path, capsys):
    toy.device("dev")
    (tmp_path / "root.json").write_bytes(toy.root)
    arguments = ["agent", "import", str(tmp_path / "dev"), str(tmp_path / "nothing is mounted here")]
    assert main([*arguments, "--root", str(tmp_path / "root.json")]) == 2
    error = capsys.readouterr().err
    assert "There is no repository in this folder." in error
    assert "Is the stick mounted?" in error


def test_missing_signatures_are_said(tmp_path, capsys, monkeypatch, artifacts):
    monkeypatch.chdir(tmp_path)
    artifacts[0].save("model.edge")
    run(capsys, "init", "fleet", "--no-passphrase")
    for key in (tmp_path / "fleet" / "keys" / "offline").iterdir():
        key.rename(tmp_path / key.name)
    out = run(capsys, "publish", "fleet", "m", "model.edge")
    assert "signatures are missing" in out
    assert "models-m (1 more)" in out
    for key in tmp_path.glob("*.pem"):
        key.rename(tmp_path / "fleet" / "keys" / "offline" / key.name)
    assert "signed and published" in run(capsys, "sign", "fleet")
    assert json.loads(run(capsys, "verify", "fleet", "--json"))["releases"][0]["version"] == "1"
