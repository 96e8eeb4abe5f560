"""The models of the benchmark: their shapes, feeds, and each in a precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import seeded_models
from onnx import numpy_helper

import edgeinfer as ei
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.transforms import FixShapes, FuseBatchNorm, PruneNM, Simplify, ToFloat16

__all__ = [
    "ONE_AT_A_TIME",
    "PRECISIONS",
    "SHAPES",
    "available",
    "feeds_of",
    "in_precision",
    "open_model",
    "read_samples",
    "with_open_batch",
]

# The order is that of importance: what time does not suffice for comes last.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mobilenet_v2_1.0_224": {"input": (1, 3, 224, 224)},
    "resnet50": {"input": (1, 3, 224, 224)},
    "squeezenet1_1": {"input": (1, 3, 224, 224)},
    "cifar10_resnet20": {"input": (1, 3, 32, 32)},
    "espcn_x3": {"input": (1, 1, 85, 85)},
    "kws_dscnn": {"input": (1, 1, 49, 10)},
    "nanodet_m_320": {"input": (1, 3, 320, 320)},
    "minilm_l6_fp16w": {"input_ids": (1, 32), "attention_mask": (1, 32)},
    "cifar10_resnet8_mlperf": {"input": (1, 3, 32, 32)},
    "vww_mobilenetv1_025_96": {"input": (1, 3, 96, 96)},
    "mnist_cntk": {"Input3": (1, 1, 28, 28)},
    "vit_b16": {"input": (1, 3, 224, 224)},
    "silero_vad_16k": {"input": (1, 576), "state": (2, 1, 128)},
}
# Their files have a batch of 1 alone.
ONE_AT_A_TIME = frozenset({"mnist_cntk", "silero_vad_16k"})
# So has the file of these: a 1 in front of the sizes that their Reshapes have is all that fixes it.
OPENED = frozenset({"nanodet_m_320"})
# Raw pixels; the others are normalized.
SCALES = {"nanodet_m_320": 255.0, "cifar10_resnet8_mlperf": 255.0, "mnist_cntk": 255.0}
PRECISIONS = ("float32", "float16", "int8")


def available(folder: Path) -> list[str]:
    """Return the names of the models that there are; those of `seeded_models` are always there."""
    return [name for name in SHAPES if name in seeded_models.SEEDED or (folder / f"{name}.onnx").is_file()]


def open_model(folder: Path, name: str) -> ei.Model:
    """Return a model by name: the file where there is one, else drawn by a seed."""
    path = folder / f"{name}.onnx"
    if name in OPENED:
        return with_open_batch(onnx.load(path))
    return ei.Model.load(path) if path.is_file() else seeded_models.SEEDED[name]()


def with_open_batch(model: onnx.ModelProto) -> ei.Model:
    """Return a model for one image as one for any number of them, N: in place, its results are the same."""
    sizes = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}:
        first, *rest = numpy_helper.to_array(sizes[name]).tolist()
        if first != 1:
            raise ValueError(f"a Reshape to {[first, *rest]} has no batch of 1 in front")
        # 0 keeps the size that is there.
        sizes[name].CopyFrom(numpy_helper.from_array(np.array([0, *rest], np.int64), name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del model.graph.value_info[:]
    return ei.Model.load(model)


def feeds_of(name: str, model: ei.Model, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def make(spec: Any) -> np.ndarray:
        shape = SHAPES[name][spec.name]
        if spec.dtype.kind == "i":
            mask = spec.name.endswith("mask")
            return np.ones(shape, spec.dtype) if mask else rng.integers(1000, 20000, shape).astype(spec.dtype)
        if name in SCALES:
            return (rng.random(shape) * SCALES[name]).astype(spec.dtype)
        return (rng.standard_normal(shape) * 0.5).astype(spec.dtype)

    return [{spec.name: make(spec) for spec in model.signature.inputs} for _ in range(count)]


def read_samples(path: Path, part: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `calibration` or `evaluation` (N, C, H, W), times `scale` plus `shift`, and `labels`."""
    with np.load(path) as file:
        rows = file[part].astype(np.float32) * file.get("scale", 1) + file.get("shift", 0)
        return rows.astype(np.float32), file.get("labels")


def samples_of(name: str, model: ei.Model, samples: Path | None) -> list[dict[str, np.ndarray]]:
    """Return real inputs for calibration: `calibration` in `SAMPLES/NAME.npz`, or random ones."""
    if samples is None or not (samples / f"{name}.npz").is_file():
        return feeds_of(name, model, 8, seed=1)
    batch, _ = read_samples(samples / f"{name}.npz", "calibration")
    return [{model.signature.inputs[0].name: row[None]} for row in batch]


def in_precision(
    name: str,
    model: ei.Model,
    precision: str,
    *,
    samples: Path | None = None,
    sparse: bool = False,
    fixed: bool = True,
) -> ei.Model:
    """Return a model in float32, float16 or int8, as TensorRT wants it.

    Args:
        name: Its name.
        model: The model.
        precision: Of `PRECISIONS`.
        samples: The folder with samples for calibration.
        sparse: Prune its weights to 2:4 first.
        fixed: Fix the batch to 1.
    """
    steps: list[Any] = [Simplify(widen_weights=precision == "int8"), FuseBatchNorm()]
    if fixed:
        steps.insert(0, FixShapes(SHAPES[name]))
    if sparse:
        # The rest is refitted to real inputs; drawn ones would only tell what noise needs.
        real = samples is not None and (samples / f"{name}.npz").is_file()
        calibration = samples_of(name, model, samples) if real else None
        # Without a search for the order of channels, which takes minutes on a network of the size of ViT-B.
        steps.append(PruneNM(n=2, m=4, reorder=False, calibration=calibration))
    if precision == "float16":
        steps.append(ToFloat16())
    if precision == "int8":
        steps.append(QuantizeStatic(calibration=samples_of(name, model, samples), target="tensorrt"))
    return ei.optimize(model, steps)
