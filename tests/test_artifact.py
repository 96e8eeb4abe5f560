"""Artifact: saved whole or not at all, verified on the way back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact, Cost
from edgeinfer.artifact.manifest import decode_manifest, encode_manifest
from edgeinfer.errors import (
    ArtifactFormatError,
    ArtifactIntegrityError,
    ArtifactMismatchError,
    ArtifactSaveError,
)
from edgeinfer.testing.models import classifier_model


@pytest.fixture
def artifact() -> Artifact:
    return ei.compile(classifier_model().model, "onnxruntime")


@pytest.fixture
def folder(artifact, tmp_path) -> Path:
    artifact.save(tmp_path / "model.edge")
    return tmp_path / "model.edge"


def test_round_trip(artifact, folder):
    opened = Artifact.open(folder)
    assert opened.digest == artifact.digest
    assert opened.manifest == artifact.manifest
    assert opened.payload.read() == artifact.payload.read()
    assert opened.signature == classifier_model().model.signature


def test_the_manifest_says_what_a_device_must_know(artifact):
    manifest = artifact.manifest
    assert (manifest.backend, manifest.device, manifest.kind) == ("onnxruntime", "CPU", "portable")
    assert manifest.model_digest == classifier_model().model.digest
    assert manifest.files["model.onnx"].size == len(artifact.payload.read())
    assert manifest.cost.disk_bytes == artifact.disk_bytes
    assert manifest.backend_version


def test_history_and_target_reach_the_manifest():
    model = ei.optimize(classifier_model().model, [], target="onnxruntime")
    assert ei.compile(model).manifest.target == "onnxruntime"


def test_golden_and_cost_survive(artifact, tmp_path):
    reference = classifier_model()
    feed = reference.feed(seed=1)
    full = artifact.with_golden(feed, reference.expected(feed), rtol=1e-3, atol=1e-4).with_cost(
        Cost(latency_p50_ms=1.5, peak_bytes=10, measured_on="here")
    )
    full.save(tmp_path / "g.edge")
    opened = Artifact.open(tmp_path / "g.edge")
    golden = opened.manifest.golden
    assert golden is not None
    np.testing.assert_array_equal(golden.inputs["image"], feed["image"])
    np.testing.assert_array_equal(golden.outputs["logits"], reference.expected(feed)["logits"])
    assert (golden.rtol, golden.atol) == (1e-3, 1e-4)
    assert opened.manifest.cost.latency_p50_ms == 1.5
    assert opened.digest == full.digest != artifact.digest


def test_saving_again_replaces(artifact, folder):
    artifact.with_cost(Cost(latency_p50_ms=2.0)).save(folder)
    assert Artifact.open(folder).manifest.cost.latency_p50_ms == 2.0
    assert [p.name for p in folder.parent.iterdir()] == ["model.edge"]


def test_saving_does_not_replace_something_else(artifact, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ArtifactSaveError, match="something else"):
        artifact.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_saving_into_nowhere(artifact, tmp_path):
    with pytest.raises(ArtifactSaveError, match="cannot be written"):
        artifact.save(tmp_path / "no folder" / "model.edge")


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_every_flipped_bit_is_found(folder, name):
    file = folder / name
    clean = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(clean), 40):
        damaged = bytearray(clean)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        if name == "manifest.json" and _same_json(damaged, clean):
            continue  # white space
        with pytest.raises((ArtifactIntegrityError, ArtifactFormatError)):
            Artifact.open(folder)
    file.write_bytes(clean)
    Artifact.open(folder)


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_truncated_and_missing_files(folder):
    file = folder / "model.onnx"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(ArtifactIntegrityError, match="wrong size") as caught:
        Artifact.open(folder)
    assert caught.value.expected == f"{len(data)} bytes"
    file.unlink()
    with pytest.raises(ArtifactIntegrityError, match="cannot be read"):
        Artifact.open(folder)


def test_a_link_in_place_of_a_file_is_refused(folder, tmp_path):
    shutil.copy(folder / "model.onnx", tmp_path / "copy")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "copy")
    with pytest.raises(ArtifactIntegrityError):
        Artifact.open(folder)


def test_not_an_artifact(tmp_path):
    with pytest.raises(ArtifactFormatError, match="no such artifact"):
        ei.load(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactFormatError, match="is a directory"):
        ei.load(tmp_path / "file")
    with pytest.raises(ArtifactFormatError, match=r"manifest\.json"):
        ei.load(tmp_path)


def _edit(folder: Path, **changes: object) -> None:
    """Change fields of the manifest and sign it again, as a machine of another kind would have written it."""
    import attrs

    manifest = decode_manifest((folder / "manifest.json").read_bytes(), where="")
    (folder / "manifest.json").write_bytes(encode_manifest(attrs.evolve(manifest, **changes)))


def test_another_format_version(folder):
    _edit(folder, format_version=99)
    with pytest.raises(ArtifactFormatError, match="format version") as caught:
        Artifact.open(folder)
    assert (caught.value.expected, caught.value.found) == ("1 to 2", 99)


def test_file_names_cannot_leave_the_folder(folder):
    fields = json.loads((folder / "manifest.json").read_bytes())
    fields["files"]["../evil"] = fields["files"]["model.onnx"]
    del fields["manifest_sha256"]
    from edgeinfer.artifact.manifest import _digest

    fields["manifest_sha256"] = _digest(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ArtifactFormatError, match="fields of its format"):
        Artifact.open(folder)


def test_another_machine_is_refused_before_the_runtime_sees_a_byte(folder):
    _edit(folder, requires={"machine": ("aarch64-of-the-moon", "riscv*")})
    with pytest.raises(ArtifactMismatchError, match="another machine") as caught:
        ei.load(folder)
    error = caught.value
    assert "riscv*" in str(error.expected)
    assert os.uname().machine in str(error.found)
    assert "Compile the model" in error.hint


def test_requirements_take_patterns(folder):
    _edit(folder, requires={"machine": ("nothing", "*")})
    ei.load(folder).close()


def test_a_fact_that_is_not_known_is_a_mismatch(folder):
    _edit(folder, requires={"compute_capability": ("8.6",)})
    with pytest.raises(ArtifactMismatchError, match="compute capability") as caught:
        ei.load(folder)
    assert "unknown" in str(caught.value.found)


FULL_DISK = """
import errno, os, sys
import edgeinfer as ei
from edgeinfer.errors import ArtifactSaveError
from edgeinfer.testing.models import classifier_model
artifact = ei.compile(classifier_model().model, "onnxruntime")
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk that fills up after 1000 bytes
try:
    artifact.save(sys.argv[1])
except ArtifactSaveError as error:
    print(error)
    sys.exit(7)
"""


def test_a_disk_that_fills_up_leaves_nothing_behind(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "free" in done.stdout
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model.edge"]


KILLED = """
import os, sys
import edgeinfer as ei
from edgeinfer import atomic
from edgeinfer.testing.models import classifier_model
artifact = ei.compile(classifier_model().model, "onnxruntime")
atomic._swap_in = lambda draft, folder: os._exit(9)  # power fails before the rename
artifact.save(sys.argv[1])
"""


def test_a_crash_before_the_rename_keeps_the_old_artifact(folder):
    digest = Artifact.open(folder).digest
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == 9
    assert Artifact.open(folder).digest == digest


def test_what_a_person_sees(artifact):
    html = artifact._repr_html_()
    assert "onnxruntime" in html
    assert "image float32 (N, 3, 8, 8)" in html
    assert "portable" in repr(artifact)
