"""Plain `infer` beside the bound mode: what the copies on the host cost, and that they are right.

Part of `run.py` (`--part host` runs it alone). The aim: `infer` at most 1.3 times the bound mode at batch 1,
8 and 32, and its p99 at most 1.10 times its p50. Ways to call `infer` are told apart: one array that comes
again, new arrays each time (many in turns), new arrays that were made just before and lie in the caches, both
with the C library that copies, and outputs that stay on the GPU.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import SHAPES, open_model
from results import Results, latency

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.copy_library import build_copy_library
from edgeinfer.display import Table
from edgeinfer.transforms import FuseBatchNorm, Simplify, ToFloat16

BATCHES = (1, 8, 32)
AIM_RATIO, AIM_TAIL = 1.3, 1.10
RUNS, SECONDS = 5_000, 20.0
# More arrays than the adapter remembers, so that none of them comes again in its eyes.
FRESH = 24
# A large input and a small output, on a small network and a large one.
MODELS = ("mobilenet_v2_1.0_224", "resnet50")
# The ways whose latency is told as a multiple of the bound mode's.
RATED = ("bound", "again", "fresh", "made", "fresh, C", "made, C")
HEAD = '<ir_version: 8, opset_import: ["" : 15]>\n'


def check(options: Mapping[str, Any], load: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The rules of ownership on the real CUDA, which `test_tensorrt_host_copies.py` holds on a fake.

    Args:
        options: Of compiling.
        load: Of loading.
    """
    text = HEAD + "g (float[N,65536] x) => (float[N,65536] y) { y = Neg(x) }"
    artifact = ei.compile(
        onnx.parser.parse_model(text), "tensorrt", options={**options, "dims": {"N": (1, 4, 64)}}
    )
    rng = np.random.default_rng(0)

    def rows(count: int) -> np.ndarray:
        return rng.standard_normal((count, 65536)).astype(np.float32)

    with ei.load(artifact, options=load) as session:
        held = []
        for step in range(40):  # outputs are kept, dropped, sliced
            x = rows(1 + step % 5)
            y = session.infer({"x": x})["y"]
            held.append((y[0, 7:99] if step % 3 == 0 else y, -x[0, 7:99] if step % 3 == 0 else -x))
            if len(held) > 6 or step % 4 == 3:
                held.pop(0)
            for found, wanted in held:
                np.testing.assert_array_equal(found, wanted)
        x = rows(8)
        for _ in range(10):  # read where it lies from the third time on, and changed at once
            x[...] = rows(8)
            wanted = -x
            y = session.infer({"x": x})["y"]
            x[...] = 0
            np.testing.assert_array_equal(y, wanted)
        locks = len(session._runner._shared.locks._locked)
        assert locks == 1, f"{locks} arrays are page-locked"
        del x
        gc.collect()
        assert not session._runner._shared.locks._locked, "an array that is gone is still page-locked"
        for step in range(30):  # new arrays where old ones lay
            x = rows(8)
            for _ in range(1 + step % 4):
                np.testing.assert_array_equal(session.infer({"x": x})["y"], -x)
        large = rows(64)  # in pieces, by several threads
        for _ in range(2):
            np.testing.assert_array_equal(session.infer({"x": large + 1})["y"], -(large + 1))
        kept = session.infer({"x": large})["y"]
    np.testing.assert_array_equal(kept, -large)  # after the session
    for found, wanted in held:
        np.testing.assert_array_equal(found, wanted)
    with ei.load(artifact, options={"outputs": "device"}) as session:
        outputs = [session.infer({"x": k * large[:4]})["y"] for k in range(1, 6)]
        for k, output in enumerate(outputs, 1):
            np.testing.assert_array_equal(output.to_host(), -(k * large[:4]))
        again = session.infer({"x": outputs[0]})["y"]
        np.testing.assert_array_equal(again.to_host(), large[:4])
    np.testing.assert_array_equal(outputs[2].to_host(), -(3 * large[:4]))
    return {"copy_threads": session._runner._shared.threads.count}


def build(
    model: ei.Model,
    shapes: Mapping[str, tuple[int, ...]],
    precision: str,
    options: Mapping[str, Any],
    cache: Any,
) -> ei.Artifact:
    """One engine for all batches; every other dimension is fixed."""
    steps: list[Any] = [Simplify(), FuseBatchNorm(), *([ToFloat16()] if precision == "float16" else [])]
    dims = {}
    for spec in model.signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, int):
                size = shapes[spec.name][axis]
                dims[dim or f"{spec.name}.{axis}"] = BATCHES if axis == 0 else (size, size, size)
    return ei.compile(
        ei.optimize(model, steps), "tensorrt", options={**options, "dims": dims}, cache_dir=cache
    )


def measure(
    artifact: ei.Artifact | Path,
    shapes: Mapping[str, tuple[int, ...]],
    batch: int,
    latency: Callable[..., dict[str, float]],
    seconds: float,
    runs: int = RUNS,
    library: Path | None = None,
) -> dict[str, Any]:
    """Return p50 and p99 of each way over a number of runs, and their ratios to the bound mode.

    With a `library` for copying, new arrays are measured with it, too.
    """
    rng = np.random.default_rng(0)

    def feed() -> dict[str, np.ndarray]:
        return {name: rng.standard_normal((batch, *shape[1:]), np.float32) for name, shape in shapes.items()}

    one, many = feed(), itertools.cycle([feed() for _ in range(FRESH)])
    found: dict[str, Any] = {}
    with ei.load(artifact) as session:
        with session.bind({name: array.shape for name, array in one.items()}) as bound:
            for name, array in one.items():
                bound.inputs[name][...] = array
            found["bound"] = latency(bound.run, seconds, runs)
        found["again"] = latency(lambda: session.infer(one), seconds, runs)
        found["fresh"] = latency(lambda: session.infer(next(many)), seconds, runs)
        made: dict[str, np.ndarray] = {}

        def make() -> None:
            made.update({name: array + np.float32(1) for name, array in one.items()})

        found["made"] = latency(lambda: session.infer(made), seconds / 4, runs, make)
        found["notes"] = session.execution().notes
    if library is not None:
        with ei.load(artifact, options={"copy_library": str(library)}) as session:
            found["fresh, C"] = latency(lambda: session.infer(next(many)), seconds, runs)
            found["made, C"] = latency(lambda: session.infer(made), seconds / 4, runs, make)
    with ei.load(artifact, options={"outputs": "device"}) as session:
        found["device outputs"] = latency(lambda: session.infer(one), seconds, runs)
    for way in [way for way in RATED if way in found]:
        found[f"{way} / bound"] = found[way]["p50_ms"] / found["bound"]["p50_ms"]
        found[f"{way} p99 / p50"] = found[way]["p99_ms"] / found[way]["p50_ms"]
        found[f"{way} aim reached"] = (
            found[f"{way} / bound"] <= AIM_RATIO and found[f"{way} p99 / p50"] <= AIM_TAIL
        )
    return found


def host_part(
    results: Results,
    folder: Path,
    names: list[str],
    options: Mapping[str, Any],
    seconds: float = SECONDS,
    precisions: tuple[str, ...] = ("float16",),
) -> None:
    """Check, then measure each model at each batch, each way for so many seconds at most."""
    results.step(lambda: check(options), step="check", check="host copies")
    library = results.scratch / "libedgeinfer_copy.so"
    results.step(lambda: {"file": build_copy_library(library)}, step="build of the copy library")
    if library.exists():
        own = {"copy_library": str(library)}
        results.step(lambda: check(options, own), step="check", check="host copies by the library")
    for precision, name in itertools.product(precisions, names):
        path = results.scratch / "host" / f"{name}-{precision}.edge"

        def make(path: Path = path, name: str = name, precision: str = precision) -> dict[str, Any]:
            if not path.exists():  # else kept from an earlier run
                cache = results.scratch / "cache"
                path.parent.mkdir(parents=True, exist_ok=True)
                build(open_model(folder, name), SHAPES[name], precision, options, cache).save(path)
            return {}

        keys = {"model": name, "precision": precision}
        results.step(make, step="host build", **keys)
        for batch in BATCHES if path.exists() else ():
            results.step(
                lambda path=path, name=name, batch=batch: measure(
                    path, SHAPES[name], batch, latency, seconds, library=library if library.exists() else None
                ),
                step="host",
                batch=batch,
                **keys,
            )


def host_table(rows: list[dict[str, Any]]) -> str:
    """Return the measured rows as a table."""
    ways = (*RATED, "device outputs")
    ratios = tuple(f"{way} / bound" for way in RATED[1:]) + tuple(f"{way} p99 / p50" for way in RATED)
    cells = [
        (
            *(row["model"], row["precision"], row["batch"]),
            *(f"{row[way]['p50_ms']:.3f}" if way in row else "" for way in ways),
            *(f"{row[ratio]:.2f}" if ratio in row else "" for ratio in ratios),
        )
        for row in rows
        if row["step"] == "host" and "error" not in row
    ]
    title = f"p50 in ms, host to host; the aim is {AIM_RATIO} times bound, p99/p50 {AIM_TAIL}"
    return str(Table(title=title, columns=("model", "precision", "batch", *ways, *ratios), rows=cells))
