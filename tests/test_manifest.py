"""The manifest's format: old and newer ones, what is identity and what is annotation, and hostile ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import onnx.parser
import pytest

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact, Cost
from edgeinfer.artifact.manifest import decode_manifest, encode_manifest, identity_digest
from edgeinfer.errors import ArtifactError, ArtifactFormatError, EdgeInferError
from tests.manifest_kit import NET, decode, signed, small_artifact, unsigned

# What edgeinfer wrote before annotations had a place of their own.
FORMAT_1 = """
{"backend": "onnxruntime", "backend_version": "1.32.0", "cost": {"disk_bytes": null, "latency_p50_ms": 1.5,
 "latency_p99_ms": null, "measured_on": "a bench", "peak_bytes": null}, "device": "CPU",
 "entry": "model.onnx", "files": {"golden.npz": {
 "sha256": "3cdbde32076b960512d608c556220f1cd08af1f0dce2bdde18d739a1e75a7cf4",
 "size": 400}, "model.onnx": {"sha256": "2f1f4c70f3d20c1042cfc4fb220808697edca8bee1c52b9ac711d18b2849a907",
 "size": 371}}, "format_version": 1, "golden": {"atol": 0, "rtol": 0.001}, "history": [{"applied": 2,
 "config": {}, "digest_after": "11ed9986d56635d826df71946e206599b56acd36d66582ff6868053cc1bc0c89",
 "digest_before": "b0381d31290b3dd48adc0cad919a95ffa54dc38ccb77b30caa6e11f951bb81c4", "name": "Simplify",
 "notes": [], "skipped": 0}], "kind": "portable",
 "manifest_sha256": "df935322b8ee240c51700c6eeed93aa4030c60f024c7b0ee6a21fb342986cfec",
 "model_digest": "11ed9986d56635d826df71946e206599b56acd36d66582ff6868053cc1bc0c89",
 "options": {"threads": 1}, "requires": {}, "signature": {
 "inputs": [{"dtype": "float32", "name": "x", "shape": ["N", 2]}], "outputs":
 [{"dtype": "float32", "name": "y", "shape": ["N", 2]}]}, "target": "onnxruntime"}
"""


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return small_artifact()


@pytest.fixture(scope="module")
def fields(artifact) -> dict[str, Any]:
    """The JSON of a manifest without its hash."""
    return unsigned(encode_manifest(artifact.manifest))


# Formats


def test_format_1_is_read_and_written_as_format_2():
    old = decode_manifest(FORMAT_1.encode(), where="manifest.json")
    assert old.cost == Cost(latency_p50_ms=1.5, measured_on="a bench")
    assert [entry.name for entry in old.history] == ["Simplify"]
    assert (old.backend_version, old.target, old.options) == ("1.32.0", "onnxruntime", {"threads": 1})
    again = unsigned(encode_manifest(old))
    assert again["format_version"] == 2
    assert set(again["annotations"]) == {"backend_version", "cost", "history", "model_digest", "target"}
    assert identity_digest(decode(again)) == identity_digest(old)


def test_an_artifact_of_format_1_opens_runs_and_keeps_its_digest(artifact, tmp_path):
    artifact.save(tmp_path / "old.edge")
    path = tmp_path / "old.edge" / "manifest.json"
    new = unsigned(path.read_bytes())
    del new["critical"], new["annotations"]["notes"]
    old = {**{k: v for k, v in new.items() if k != "annotations"}, **new["annotations"], "format_version": 1}
    path.write_bytes(signed(old))
    opened = Artifact.open(tmp_path / "old.edge")
    assert opened.digest == artifact.digest
    assert attrs.evolve(opened.manifest, golden=None) == attrs.evolve(artifact.manifest, golden=None)
    with ei.load(opened) as session:
        session.check_golden()
    assert Artifact.open(opened.save(tmp_path / "new.edge").path or "").digest == artifact.digest


@pytest.mark.parametrize("version", [0, 3, 99, "2", None, True, [2], 2.0])
def test_other_formats_are_refused(fields, version):
    with pytest.raises(ArtifactFormatError, match="format version") as caught:
        decode({**fields, "format_version": version})
    assert caught.value.expected == "1 to 2"


# Identity and annotations


def test_annotations_do_not_change_the_digest(artifact):
    changed = artifact.with_cost(Cost(latency_p50_ms=99.0, measured_on="elsewhere")).with_notes("it is old")
    history = attrs.evolve(changed.manifest, history=(), backend_version="0", model_digest="", target=None)
    assert changed.digest == artifact.digest == identity_digest(history)
    assert encode_manifest(changed.manifest) != encode_manifest(artifact.manifest)
    assert "it is old" in str(changed.table())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backend", "openvino"),
        ("device", "GPU"),
        ("kind", "device-bound"),
        ("requires", {"machine": ["x86_64"]}),
        ("options", {"threads": 2}),
        ("golden", {"rtol": 1.0, "atol": 0}),
        ("critical", ["golden"]),
        ("something_new", "a value"),
    ],
)
def test_what_runs_changes_the_digest(fields, name, value):
    assert identity_digest(decode({**fields, name: value})) != identity_digest(decode(fields))


def test_files_and_signature_change_the_digest(fields):
    for path in (("files", "model.onnx", "sha256"), ("signature", "inputs", 0, "name")):
        changed = copy.deepcopy(fields)
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "0" * 64
        assert identity_digest(decode(changed)) != identity_digest(decode(fields))


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_a_field_that_is_empty_does_not_count(fields, empty):
    """So a later version may add one, and old artifacts keep their digest."""
    assert identity_digest(decode({**fields, "later": empty})) == identity_digest(decode(fields))


# Fields of later versions


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each object of a JSON value in which a format has names (not data)."""
    if isinstance(value, dict):
        if path not in (("files",), ("options",), ("requires",)) and "config" not in path:
            yield path
        for name, item in value.items():
            yield from objects(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, (*path, index))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_unknown_fields_survive_wherever_they_are(artifact, fields, tmp_path):
    later = {"any": ["JSON", 1.5, None]}
    paths = list(objects(fields))
    assert len(paths) >= 9  # the manifest, annotations, cost, history, files, signature, specs, golden
    for path in paths:
        artifact.save(tmp_path / "a.edge")
        changed = copy.deepcopy(fields)
        at(changed, path)["later"] = later
        (tmp_path / "a.edge" / "manifest.json").write_bytes(signed(changed))
        opened = Artifact.open(tmp_path / "a.edge")
        written = opened.save(tmp_path / "b.edge")
        assert unsigned((tmp_path / "b.edge" / "manifest.json").read_bytes()) == changed
        assert opened.digest == Artifact.open(tmp_path / "b.edge").digest == written.digest
        assert (opened.digest == artifact.digest) == (path[:1] == ("annotations",))


def test_unknown_fields_survive_a_change_of_others_and_go_with_what_they_describe(fields):
    changed = copy.deepcopy(fields)
    changed["later"] = changed["annotations"]["later"] = changed["files"]["model.onnx"]["later"] = 1
    changed["annotations"]["cost"]["energy_mj"] = 3
    opened = decode(changed)
    measured = attrs.evolve(opened, cost=Cost(latency_p50_ms=7.0))
    again = unsigned(encode_manifest(measured))
    assert again["later"] == again["annotations"]["later"] == again["files"]["model.onnx"]["later"] == 1
    assert again["annotations"]["cost"]["latency_p50_ms"] == 7.0
    assert "energy_mj" not in again["annotations"]["cost"]  # of the older measurement
    without_golden = attrs.evolve(
        opened, golden=None, files={n: e for n, e in opened.files.items() if n != "golden.npz"}
    )
    assert set(unsigned(encode_manifest(without_golden))["files"]) == {"model.onnx"}


def test_a_critical_field_that_is_not_known_is_refused(fields, artifact, tmp_path):
    changed = {**fields, "critical": ["options", "watermark"], "watermark": "…"}
    artifact.save(tmp_path / "a.edge")
    (tmp_path / "a.edge" / "manifest.json").write_bytes(signed(changed))
    with pytest.raises(ArtifactFormatError, match="must be understood") as caught:
        ei.load(tmp_path / "a.edge")
    assert caught.value.facts["unknown"] == ("watermark",)
    assert caught.value.hint == "Upgrade edgeinfer."


def test_critical_fields_that_are_known_are_kept(fields):
    opened = decode({**fields, "critical": ["golden", "requires"]})
    assert unsigned(encode_manifest(opened))["critical"] == ["golden", "requires"]


# Golden inputs


def test_a_golden_file_that_unpacks_to_more_than_the_memory_is_refused(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeinfer.artifact.golden.MAX_UNPACKED_BYTES", 100)
    artifact.save(tmp_path / "a.edge")
    with pytest.raises(ArtifactError, match="unpack to"):
        Artifact.open(tmp_path / "a.edge")


@pytest.mark.parametrize("change", ["no tolerances", "no file"])
def test_golden_values_and_their_tolerances_belong_together(fields, change):
    changed = copy.deepcopy(fields)
    if change == "no tolerances":
        changed["golden"] = None
    else:
        del changed["files"]["golden.npz"]
    with pytest.raises(ArtifactFormatError, match="fields of its format") as caught:
        decode(changed)
    assert "belong together" in str(caught.value.found)


@pytest.mark.parametrize("name", ["golden.npz", "manifest.json", "../model", "a/b", ""])
def test_a_backend_that_names_its_files_wrongly_is_told(name):
    from edgeinfer.artifact.artifact import Payload

    payload = Payload(entry=name, files={name: b"x"})
    model = ei.Model.load(onnx.parser.parse_model(NET))
    with pytest.raises(ArtifactFormatError, match="cannot be an artifact") as caught:
        Artifact.of_payload(payload, model=model, backend="b", backend_version="")
    assert repr(name) in str(caught.value.found)


def test_errors_name_the_file(artifact, tmp_path):
    artifact.save(tmp_path / "a.edge")
    (tmp_path / "a.edge" / "model.onnx").unlink()
    with pytest.raises(EdgeInferError) as caught:
        ei.load(tmp_path / "a.edge")
    error = caught.value
    assert Path(error.where or "") == tmp_path / "a.edge" / "model.onnx"
    assert error.expected
    assert error.found == "No such file or directory"
    assert error.hint


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such artifact"),
        (lambda path: path.touch(), "is a directory"),
        (lambda path: path.symlink_to(path), "cannot be opened: Too many levels"),
        (lambda path: path.mkdir(), "no readable manifest"),
    ],
)
def test_what_is_no_artifact_is_told_apart(make, what, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(ArtifactFormatError, match=what) as caught:
        Artifact.open(tmp_path / "a")
    assert caught.value.expected
    with pytest.raises(ArtifactFormatError, match="null byte"):
        Artifact.open("a\0b")
