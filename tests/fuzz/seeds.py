"""Valid inputs of each target, made by the library itself."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from securesystemslib.signer import CryptoSigner

import edgeinfer as ei
from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.manifest import Cost, encode_manifest
from edgeinfer.budget import Budget
from edgeinfer.calibration.cache import CalibrationCache, Checkpoint
from edgeinfer.calibration.observers import HistogramObserver, MinMaxObserver, MovingAverageObserver
from edgeinfer.fleet.device.assignment import Assignment, AssignmentKeys, Signature, SignedAssignments
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.journal import Boots, Change, Floors, Journal, Quarantined, State, Update
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.predicate import Predicate
from edgeinfer.fleet.device.release import Blob, Delta, Release, Variant
from edgeinfer.fleet.device.reports import Report
from edgeinfer.transforms import QuantizeWeights, Simplify, ToFloat16
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.recipe import Recipe, Step
from tests.fuzz.mutate import SEPARATOR

REPORT_KEY = b"k" * 32
FEEDS = [{"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 2, 2) * (n + 1)} for n in range(3)]
CACHE_ARRAYS = ("0.ends", "1.ends", "1.average", "2.counts", "2.whole", "2.ends")
_HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'
_TEXTS = (
    "g (float[N, 4, 2, 2] x) => (float[N, 4, 2, 2] y) { h = Conv(x, w)  y = Relu(h) }",
    "g (float[2] x) => (float[2] y, float[2] x) { y = Add(x, x) }",
    """g (float[2] x, bool b) => (float[2] y) {
        y = If (b) <then_branch = t () => (float[2] a) { a = Relu(x) },
                    else_branch = e () => (float[2] c) { c = Neg(x) }>
    }""",
    'g (float[1, 4, 4, 4] x) => (float[1, 4, 2, 2] y) { y = Conv <auto_pad = "VALID"> (x, w) }',
)


@cache
def model() -> ei.Model:
    proto = onnx.parser.parse_model(_HEADER + _TEXTS[0])
    weights = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return ei.Model.load(proto)


def models() -> list[bytes]:
    protos = [onnx.parser.parse_model(_HEADER + text) for text in _TEXTS[1:3]]
    conv = onnx.parser.parse_model(_HEADER + _TEXTS[3])
    conv.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w"))
    outside = onnx.ModelProto()
    outside.CopyFrom(conv)
    weight = outside.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.dims[:] = [4, 4, 1, 1]
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w"), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=value)
    function = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21, "own": 1]>\n'
        "g (float[2] x) => (float[2] y) { y = own.f(x) }\n"
        '<domain: "own", opset_import: ["": 21]> f (a) => (b) { b = Relu(a) }'
    )
    found = [model().to_bytes(), ei.optimize(model(), [QuantizeWeights(bits=8)]).to_bytes()]
    return found + [proto.SerializeToString() for proto in (*protos, conv, outside, function)]


def manifests() -> list[bytes]:
    artifact = ei.compile(ei.optimize(model(), [Simplify()]), "onnxruntime")
    with_more = artifact.with_cost(Cost(latency_p50_ms=1.5, peak_bytes=10)).with_notes("a note")
    golden = artifact.with_golden(FEEDS[0], {"y": np.zeros((1, 4, 2, 2), np.float32)}, rtol=0.1, atol=1)
    flat = json.loads(encode_manifest(artifact.manifest))
    first = {
        **{k: v for k, v in flat.items() if k != "annotations"},
        **flat["annotations"],
        "format_version": 1,
    }
    made: list[Artifact] = [artifact, with_more, golden]
    return [encode_manifest(each.manifest) for each in made] + [json.dumps(first).encode()]


def releases() -> list[bytes]:
    a, b = "a" * 64, "b" * 64
    blob = Blob(path="model.onnx", size=5, digest=a)
    plain = Variant(name="ort", artifact_digest=b, blobs=(blob,))
    full = Variant(
        name="ov",
        artifact_digest=b,
        blobs=(blob, Blob(path="w.bin", size=7, digest=b)),
        needs=Predicate(arch="x86_64", backend="onnxruntime", runtime=">=1.23,<2", memory_bytes=4),
        budget=Budget(latency_p99_ms=3, peak_bytes="120 MiB"),
        golden="golden/ov.npz",
        measured={"latency_p50_ms": 1.5},
        rank=1,
    )
    bundle = (Blob(path="labels.txt", size=1, digest=b), Blob(path="golden/ov.npz", size=2, digest=a))
    deltas = (Delta(of=a, base=b, size=2, digest=b, format="sub8+zstd"),)
    common: dict[str, Any] = {"model": "defects", "interface": "defects/2", "created_at": 7}
    made = (
        Release(version="1", variants=(plain,), **common),
        Release(version="2", variants=(plain, full), bundle=bundle, deltas=deltas, requires="1", **common),
    )
    return [each.to_bytes() for each in made]


@cache
def _signer() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


@cache
def assignment_keys() -> AssignmentKeys:
    key = _signer().public_key
    return AssignmentKeys(keys={key.keyid: key})


def signatures(payload: bytes) -> list[dict[str, str]]:
    made = _signer().sign(payload)
    return [{"keyid": made.keyid, "sig": made.signature}]


def assignments() -> list[bytes]:
    common: dict[str, Any] = {"device": "d1", "incarnation": 3}
    several = (
        Assignment(**common, model="m", generation=(1, 5), release="a" * 64, start_before=2000, version="2"),
        Assignment(**common, model="n", generation=(1, 6), release="", stage="shadow"),
    )
    made = [
        SignedAssignments(**common, issued_at=900, assignments=each) for each in (several, several[:1], ())
    ]
    return [
        each.to_bytes(tuple(Signature(**fields) for fields in signatures(each.payload()))) for each in made
    ]


def reports() -> list[bytes]:
    common: dict[str, Any] = {"device": "d1", "incarnation": 3, "at": 900}
    made = (
        Report(**common, sequence=1, phase=Phase.IDLE, facts={"arch": "x86_64", "backends": {"a": "1"}}),
        Report(
            **common,
            sequence=2,
            model="m",
            generation=(1, 5),
            phase=Phase.SOAKING,
            code="latency_p99_ms",
            digest="a" * 64,
            metrics={"latency_ms": Histogram([0.0, 1.5, 2.5, -1.0]), "errors": 2.0},
            log=("one", "two"),
        ),
    )
    return [each.to_bytes(REPORT_KEY) for each in made]


def device_journals() -> list[bytes]:
    change = Change(
        model="m", generation=(1, 5), release="a" * 64, version="2", start_before=2000, stage="shadow"
    )
    full = State(
        sequence=4,
        last_number=2,
        floors=Floors(time=9, metadata={"root": 1}, generations={"m": (1, 5)}),
        update=Update(phase=Phase.SOAKING, changes=(change,), number=2, previous=1, attempts=1),
        quarantine={"b" * 64: Quarantined(device_class="pi", code="latency", at=7)},
        boots=Boots(boot_id="x", unclean=1, seconds=5.5),
        history={"m": ("a" * 64, "2")},
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for state in (State(), full):
            Journal(Path(folder)).save(state)
            found.append((Path(folder) / "state.json").read_bytes())
    return found


def tuning_journals() -> list[bytes]:
    candidate = Candidate(
        precision="int8", method="mse", effort="plain", keep_float=("a",), options={"threads": 1}
    )
    made = {
        "trial": 1,
        "candidate": candidate.to_dict(),
        "outcome": "ok",
        "sqnr_db": 30.5,
        "float_layers": ["a"],
    }
    timing = {"outcome": "ok", "n": 5, "wall_p50_ms": 1.5, "wall_p99_ms": 2.0, "latencies_ms": [1.0, 2.0]}
    records = (
        {"kind": "start", "model": "a" * 64},
        {"kind": "prepared", "layers": [["conv", "Conv", 100]], "prunes": ["channels"], "seconds": 1.0},
        {"kind": "made", **made, "seconds": 2.0},
        {
            "kind": "rung",
            "name": "probe",
            "timings": {"0": timing, "1": timing},
            "pressure": 1.0,
            "seconds": 3,
        },
        {"kind": "sensitivity", "layers": [["conv", 20.5]]},
        {"kind": "evaluating", "trial": 1},
        {"kind": "evaluated", "trial": 1, "metric": None, "reason": "why"},
        {"kind": "memory", "trial": 1, "peak_bytes": 100},
        {"kind": "layers", "trial": 1, "us": {"conv": 5.0}},
        {"kind": "end"},
    )
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    return [lines, lines[:-5]]


@cache
def recipe() -> Recipe:
    _, made = Recipe.record(model(), (QuantizeWeights(bits=8, min_elements=1), ToFloat16()))
    assert made.steps
    return made


def step(fields: dict[str, Any]) -> Step:
    return Step(**fields)


def recipes() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        saved = recipe().save(Path(folder) / "r")
        return [SEPARATOR.join(((saved / "recipe.json").read_bytes(), (saved / "tensors.bin").read_bytes()))]


def deltas() -> list[bytes]:
    made = [each["delta"] for each in recipe().to_dict()["steps"]]
    taken = json.loads(json.dumps(made[0]))
    taken["initializer"].append(
        {"name": "w", "tensor": {"name": "w", "dims": ["2"], "data_type": 1}, "take": [0, [0, 1]]}
    )
    return [json.dumps(each).encode() for each in (*made, taken)]


def caches() -> list[bytes]:
    watching: dict[str, list[Any]] = {
        "x": [MinMaxObserver(), MovingAverageObserver(), HistogramObserver("percentile", bins=16)]
    }
    with tempfile.TemporaryDirectory() as folder:
        cache = CalibrationCache(folder)
        checkpoint = Checkpoint(cache, model(), watching, FEEDS)
        for feed in FEEDS:
            for observer in watching["x"]:
                observer.update(feed["x"])
            checkpoint.saw(feed)
        checkpoint.finish()
        entry = Path(folder) / cache.key(model(), watching)
        meta = entry.joinpath("meta.json").read_bytes()
        with np.load(entry / "states.npz") as states:
            arrays = [_npy(states[name]) for name in CACHE_ARRAYS]
    return [SEPARATOR.join((meta, *arrays))]


def feed_files() -> list[bytes]:
    packed = io.BytesIO()
    np.savez_compressed(packed, x=FEEDS[0]["x"], y=np.arange(3))
    return [
        b"z" + packed.getvalue(),
        b"a" + _npy(FEEDS[0]["x"]),
        b"m" + _npy(np.arange(6, dtype=np.int16).reshape(2, 3).T),
        b"m" + _npy(np.array(["a", "bc"])),
        b"a" + _npy(np.zeros(2, [("a", "<f4"), ("b", "<i2", (2,))])),
    ]


def golden_files() -> list[bytes]:
    packed = io.BytesIO()
    np.savez(packed, **{"in:x": np.array([b"ab", b"cd"], "V2"), "out:y": np.array(["a"])})
    return [packed.getvalue(), b"m" + _npy(np.array([b"ab", b"cd"], "V2")), b"m" + _npy(np.float32(1))]


def _npy(array: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.save(packed, array)
    return packed.getvalue()
