"""How many bytes a new version of a model costs a device: as a file, compressed, zstd's patch, and our delta.

    python benchmarks/fleet/delta_sizes.py [FOLDER OF MODELS]

Artifacts are compiled from real models whose weights are quantized to int8. "x % of weights" moves so many of
them by one step, as fine-tuning does; "1 % noise on all" scales every weight by 1 + 0.01 N(0, 1) and rounds;
"new head" replaces the largest weight; "float32" adds 0.1 % noise to float weights instead.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import zstandard
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import edgeinfer as ei  # noqa: E402
from edgeinfer.fleet.device.delta import apply_delta, make_delta  # noqa: E402
from edgeinfer.transforms import QuantizeWeights  # noqa: E402

MODELS = ("mobilenet_v2_1.0_224", "squeezenet1_1", "cifar10_resnet20", "kws_dscnn")
LEVEL = 15


def weights(model: onnx.ModelProto, kind: int) -> list[onnx.TensorProto]:
    found = [t for t in model.graph.initializer if t.data_type == kind and len(t.dims) >= 2]
    return sorted(found, key=lambda tensor: int(np.prod(tensor.dims)))


def changed(
    model: onnx.ModelProto, kind: int, change: Callable[[np.ndarray], np.ndarray], last: bool
) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = weights(copy, kind)
    for tensor in tensors[-1:] if last else tensors:
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return ei.compile(copy, "onnxruntime").payload.read()


def steps(share: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)

    def change(array: np.ndarray) -> np.ndarray:
        moved = rng.random(array.shape) < share
        step = rng.choice((-1, 1), array.shape)
        return np.clip(array.astype(np.int16) + moved * step, -127, 127).astype(array.dtype)

    return change


def drift(array: np.ndarray) -> np.ndarray:
    factor = 1 + 0.01 * np.random.default_rng(0).standard_normal(array.shape)
    return np.clip(np.rint(array * factor), -127, 127).astype(array.dtype)


def noise(array: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (array * (1 + 0.001 * rng.standard_normal(array.shape))).astype(array.dtype)


def head(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).integers(-127, 127, array.shape).astype(array.dtype)


def main(folder: Path) -> None:
    columns = (("bytes", 10), ("zstd", 8), ("patch", 8), ("delta", 8), ("make s", 8), ("apply s", 9))
    print(f"{'model':22}{'change':18}" + "".join(f"{name:>{width}}" for name, width in columns))
    for name in MODELS:
        float_model = onnx.load(folder / f"{name}.onnx")
        int8 = ei.optimize(float_model, [QuantizeWeights(bits=8)])
        quantized = onnx.load_from_string(int8.to_bytes())
        kinds = {t.data_type for t in quantized.graph.initializer if len(t.dims) >= 2}
        kind = onnx.TensorProto.INT8 if onnx.TensorProto.INT8 in kinds else onnx.TensorProto.UINT8
        base = ei.compile(quantized, "onnxruntime").payload.read()
        floats = ei.compile(float_model, "onnxruntime").payload.read()
        cases = [
            ("0.1 % of weights", base, changed(quantized, kind, steps(0.001), False)),
            ("1 % of weights", base, changed(quantized, kind, steps(0.01), False)),
            ("10 % of weights", base, changed(quantized, kind, steps(0.1), False)),
            ("1 % noise on all", base, changed(quantized, kind, drift, False)),
            ("new head", base, changed(quantized, kind, head, True)),
            ("float32, 0.1 %", floats, changed(float_model, onnx.TensorProto.FLOAT, noise, False)),
        ]
        for what, old, new in cases:
            report(name, what, old, new)


def report(name: str, what: str, old: bytes, new: bytes) -> None:
    whole = zstandard.ZstdCompressor(level=LEVEL).compress(new)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(new), window_log=max(20, (len(old) + len(new)).bit_length()), enable_ldm=True
    )
    patch = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(new)
    started = time.process_time()
    delta = make_delta(old, new, level=LEVEL)
    made = time.process_time()
    result = b"".join(apply_delta(io.BytesIO(old), io.BytesIO(delta), size=len(new)))
    applied = time.process_time()
    assert result == new
    shares = "".join(f"{len(part) / len(new):>8.1%}" for part in (whole, patch, delta))
    print(f"{name:22}{what:18}{len(new):>10}{shares}{made - started:>8.2f}{applied - made:>9.2f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data" / "models")
