"""What reads files and documents of others, a function for each: any bytes go in, only typed errors come out.

A function returns what it made of the input, or raises an `EdgeInferError`. Hashes and signatures that the
input lacks are made here, as somebody can who writes such a file: else nothing would get behind that check.
`python tests/fuzz/run.py` runs them under a fuzzer; `test_targets.py` runs each on its seeds and on what was
found.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgeinfer.artifact.golden import unpack_golden
from edgeinfer.artifact.manifest import Golden, decode_manifest, encode_manifest, identity_digest
from edgeinfer.artifact.payload import Payload
from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.backends.onnx_payload import onnx_source
from edgeinfer.calibration.cache import CalibrationCache, Checkpoint
from edgeinfer.calibration.observers import HistogramObserver, MinMaxObserver, MovingAverageObserver
from edgeinfer.errors import EdgeInferError
from edgeinfer.feeds.feeds import update_digest
from edgeinfer.feeds.files import read_array, read_file
from edgeinfer.fleet.device.assignment import AssignmentKeys, verify_assignments
from edgeinfer.fleet.device.journal import Journal
from edgeinfer.fleet.device.predicate import DeviceFacts
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.device.reports import Report
from edgeinfer.model.model import Model
from edgeinfer.tuning.journal import read_records
from edgeinfer.tuning.recipe import Recipe
from edgeinfer.tuning.state import State
from tests.fuzz import seeds
from tests.fuzz.mutate import (
    SEPARATOR,
    Mutate,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_model,
    mutate_parts,
)

__all__ = ["TARGETS", "Target"]


@attrs.frozen
class Target:
    """One parser.

    Attributes:
        run: Gives it an input.
        seeds: Makes valid inputs.
        mutate: Changes one so that its format stays readable.
        modules: Where the parser is; what the fuzzer watches.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    modules: tuple[str, ...]


@cache
def _folder() -> Path:
    """A folder in memory, where there is one."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="edgeinfer-fuzz-", dir=shared if shared.is_dir() else None))


def remove_folder() -> None:
    """Remove what the targets wrote."""
    shutil.rmtree(_folder(), ignore_errors=True)
    _folder.cache_clear()


@contextlib.contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    path = _folder() / name
    path.write_bytes(data)
    yield path


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(value: object, **form: Any) -> str:
    """The hash of a JSON value, where it has one."""
    try:
        return hashlib.sha256(json.dumps(value, sort_keys=True, **form).encode()).hexdigest()
    except (ValueError, RecursionError):
        return ""


def manifest(data: bytes) -> object:
    fields = _object(data)
    if fields is not None:
        fields.pop("manifest_sha256", None)
        fields["manifest_sha256"] = _sha256(fields, separators=(",", ":"))
        data = json.dumps(fields).encode()
    read = decode_manifest(data, where="here")
    again = decode_manifest(encode_manifest(read), where="again")
    assert identity_digest(again) == identity_digest(read)
    return read


def model(data: bytes) -> object:
    read = Model.load(data)
    return read.signature, read.digest, read.nbytes


def model_in_artifact(data: bytes) -> object:
    payload = Payload(entry="m", files={"m": data, "w": bytes(64)}, options={})
    return onnx_source(payload).with_addresses()


def release(data: bytes) -> object:
    read = Release.from_bytes(data)
    assert read.to_bytes() == data
    list(read.ties())
    chosen = read.choose(DeviceFacts(arch="x86_64", backends={"onnxruntime": "1.25.0"}, memory_bytes=1 << 30))
    return read.blobs_for(chosen), chosen.budget.check({"latency_p50_ms": 3.0})


def assignment(data: bytes) -> object:
    fields = _object(data)
    if fields is not None and isinstance(fields.get("signed"), dict):
        with contextlib.suppress(ValueError, RecursionError):
            text = _canonical(fields["signed"])
            if fields.get("signatures") != []:
                fields["signatures"] = seeds.signatures(text)
            data = _canonical(fields)
    keys: AssignmentKeys = seeds.assignment_keys()
    return verify_assignments(data, keys, device="d1", incarnation=3, floors={"m": (1, 2)}, now=1000)


def report(data: bytes) -> object:
    fields = _object(data)
    if fields is not None and isinstance(fields.get("report"), dict):
        with contextlib.suppress(ValueError, RecursionError):
            text = _canonical(fields["report"])
            code = hmac.new(seeds.REPORT_KEY, text, hashlib.sha256).hexdigest()
            data = b'{"hmac":"%b","report":%b}' % (code.encode(), text)
    read = Report.from_bytes(data, seeds.REPORT_KEY)
    assert Report.from_bytes(read.to_bytes(seeds.REPORT_KEY), seeds.REPORT_KEY) == read
    return read


def device_journal(data: bytes) -> object:
    fields = _object(data)
    if fields is not None and "state" in fields:
        with contextlib.suppress(ValueError, RecursionError):
            text = _canonical(fields["state"])
            fields["sha256"] = hashlib.sha256(text).hexdigest()
            data = _canonical(fields)
    with _file("state.json", data) as path:
        return Journal(path.parent).load()


def tuning_journal(data: bytes) -> object:
    records, length = read_records(data, where="here")
    assert read_records(data[:length], where="again") == (records, length)
    return State.of(records)


def recipe(data: bytes) -> object:
    text, _, tensors = data.partition(SEPARATOR)
    folder = _folder() / "recipe"
    folder.mkdir(exist_ok=True)
    folder.joinpath("recipe.json").write_bytes(text)
    folder.joinpath("tensors.bin").write_bytes(tensors)
    read = Recipe.load(folder)
    return str(read.table()), read.to_dict(), read.digest


@cache
def _recipe_step() -> str:
    return json.dumps(seeds.recipe().to_dict()["steps"][0])


def replayed_recipe(data: bytes) -> object:
    step = json.loads(_recipe_step())
    with contextlib.suppress(ValueError, RecursionError):
        step["delta"] = json.loads(data)
    changed = Recipe(base=seeds.recipe().base, steps=[seeds.step(step)], tensors=seeds.recipe().tensors)
    return changed.apply(seeds.model())


def calibration_cache(data: bytes) -> object:
    text, *arrays = data.split(SEPARATOR)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, array in zip(seeds.CACHE_ARRAYS, arrays, strict=False):
            archive.writestr(f"{name}.npy", array)
    states = packed.getvalue()
    watching = {"x": [MinMaxObserver(), MovingAverageObserver(), HistogramObserver("percentile", bins=16)]}
    cache = CalibrationCache(_folder() / "cache")
    key = cache.key(seeds.model(), watching)
    meta = _object(text)
    if meta is not None:
        meta |= {"key": key, "states_sha256": hashlib.sha256(states).hexdigest()}
        meta.pop("meta_sha256", None)
        meta["meta_sha256"] = _sha256(meta)
        text = json.dumps(meta).encode()
    folder = cache.folder / key
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("meta.json").write_bytes(text)
    folder.joinpath("states.npz").write_bytes(states)
    checkpoint = Checkpoint(cache, seeds.model(), watching, seeds.FEEDS)
    seen = checkpoint.resume()
    for observer in watching["x"]:
        observer.update(seeds.FEEDS[0]["x"])
        low, high = observer.range()
        assert low <= high
    return seen


def feeds(data: bytes) -> object:
    kind, data = data[:1], data[1:]
    if kind == b"a":
        with _file("x.npy", data) as path:
            return _checked(read_array(path)), read_file(path, ["x"])
    if kind == b"m":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("x.npy", data)
        data = packed.getvalue()
    with _file("x.npz", data) as path:
        found = read_file(path, ["x"], optional=["y"])
    arrays = found.items() if isinstance(found, dict) else [("x", found)]
    return {name: _checked(array) for name, array in arrays}


def _checked(array: np.ndarray) -> object:
    digest = hashlib.sha256()
    update_digest(digest, {"x": array})
    return array.shape, array.dtype, digest.hexdigest()


def golden(data: bytes) -> object:
    packed = io.BytesIO(data)
    if data[:1] == b"m":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("in:x.npy", data[1:])
    signature = Signature(inputs=(TensorSpec(name="x", dtype="bfloat16", shape=(2,)),), outputs=())
    found = unpack_golden(Golden(rtol=0, atol=0), packed.getvalue(), signature, where="here")
    return {name: array.dtype for name, array in found.inputs.items()}


_FLEET = ("edgeinfer.fleet.device", "edgeinfer.artifact.decode", "edgeinfer.budget")
_WIRE = ("edgeinfer.backends.onnx_wire", "edgeinfer.backends.onnx_payload")
_CACHE = ("edgeinfer.calibration", "edgeinfer.numerics")
_MODEL = ("edgeinfer.model", "edgeinfer.artifact")
TARGETS: dict[str, Target] = {
    "manifest": Target(manifest, seeds.manifests, mutate_json, ("edgeinfer.artifact",)),
    "release": Target(release, seeds.releases, mutate_json, _FLEET),
    "assignment": Target(assignment, seeds.assignments, mutate_json, _FLEET),
    "report": Target(report, seeds.reports, mutate_json, _FLEET),
    "device_journal": Target(device_journal, seeds.device_journals, mutate_json, _FLEET),
    "tuning_journal": Target(tuning_journal, seeds.tuning_journals, mutate_lines, ("edgeinfer.tuning",)),
    "recipe": Target(recipe, seeds.recipes, mutate_parts, ("edgeinfer.tuning",)),
    "replayed_recipe": Target(replayed_recipe, seeds.deltas, mutate_json, ("edgeinfer.tuning", *_MODEL)),
    "calibration_cache": Target(calibration_cache, seeds.caches, mutate_parts, _CACHE),
    "feeds": Target(feeds, seeds.feed_files, mutate_bytes, ("edgeinfer.feeds", "numpy.lib")),
    "golden": Target(golden, seeds.golden_files, mutate_bytes, ("edgeinfer.artifact", "numpy.lib")),
    "model_in_artifact": Target(model_in_artifact, seeds.models, mutate_model, _WIRE),
    "model": Target(model, seeds.models, mutate_model, _MODEL),
}

ALLOWED = EdgeInferError
