"""The build matrix, model by precision by shape by flavour, in one command. TensorRT-RTX needs no GPU for it.

    python benchmarks/tensorrt_matrix.py --models ../shared/data/models [--only kws_dscnn,mnist_cntk]

Every cell is an engine for compute capabilities 8.6 and 8.9 (ahead of time, or for the GPU here where the
flavour has no such builds), or the node and the reason of a refusal.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgeinfer as ei
from edgeinfer.backends.tensorrt_.flavours import Flavour, find_flavours
from edgeinfer.display import Table, track
from edgeinfer.errors import EdgeInferError
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.transforms import FixShapes, FuseBatchNorm, Simplify, ToFloat16

PRECISIONS = ("float32", "float16", "int8")
CAPABILITIES = ("8.6", "8.9")
# Sizes of symbolic dimensions by axis, for fixed builds and calibration.
SIZES = {0: 1, 1: 32, 2: 85, 3: 85}


def concrete(model: ei.Model) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: tuple(dim if isinstance(dim, int) else SIZES[axis] for axis, dim in enumerate(spec.shape))
        for spec in model.signature.inputs
        if spec.shape is not None
    }


def feeds(model: ei.Model, shapes: dict[str, tuple[int, ...]], count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)

    def make(spec: Any) -> np.ndarray:
        if spec.dtype.kind == "i":
            return rng.integers(0, 2, shapes[spec.name]).astype(spec.dtype)
        return rng.standard_normal(shapes[spec.name]).astype(spec.dtype)

    return [{spec.name: make(spec) for spec in model.signature.inputs} for _ in range(count)]


def in_precision(model: ei.Model, precision: str) -> ei.Model:
    steps: list[Any] = [Simplify(), FuseBatchNorm()]
    if precision == "float16":
        steps.append(ToFloat16())
    if precision == "int8":
        steps.append(QuantizeStatic(calibration=feeds(model, concrete(model), 2), target="tensorrt"))
    return ei.optimize(model, steps)


def cell(model: ei.Model, flavour: Flavour) -> tuple[str, str, str]:
    options: dict[str, Any] = {"flavour": flavour.name}
    if flavour.has("ahead_of_time"):
        options["compute_capabilities"] = CAPABILITIES
    started = time.perf_counter()
    try:
        artifact = ei.compile(model, "tensorrt", options=options)
    except EdgeInferError as error:
        return "refused", "", error.what
    return "built", f"{time.perf_counter() - started:.1f}", f"{artifact.disk_bytes / 1e6:.2f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    given = parser.parse_args()
    flavours = [flavour for flavour in find_flavours() if flavour.has("builder")]
    if not flavours:
        sys.exit("No TensorRT is installed: pip install tensorrt-rtx-cu13")
    only = given.only.split(",") if given.only else None
    paths = [path for path in sorted(given.models.glob("*.onnx")) if only is None or path.stem in only]
    rows: list[tuple[object, ...]] = []
    for path in track(paths, "building"):
        model = ei.Model.load(path)
        for shape in ("fixed", "dynamic"):
            shaped = model if shape == "dynamic" else ei.optimize(model, [FixShapes(concrete(model))])
            if shape == "dynamic" and model.signature.is_static:
                rows.append(
                    (path.stem, "all", shape, "-", "static", "", "the model has no symbolic dimension")
                )
                continue
            for precision in given.precisions.split(","):
                try:
                    made = in_precision(shaped, precision)
                except EdgeInferError as error:
                    rows.append((path.stem, precision, shape, "-", "not made", "", error.what))
                    continue
                for flavour in flavours:
                    rows.append((path.stem, precision, shape, str(flavour), *cell(made, flavour)))
                    print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    columns = ("model", "precision", "shape", "flavour", "state", "seconds", "size or reason")
    built = sum(row[4] == "built" for row in rows)
    refused = sum(row[4] == "refused" for row in rows)
    print(
        Table(
            title=f"TensorRT build matrix for compute capability {' and '.join(CAPABILITIES)}",
            columns=columns,
            rows=tuple(rows),
            footer=f"{built} built, {refused} refused",
        )
    )


if __name__ == "__main__":
    main()
